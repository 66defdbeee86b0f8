"""The method in plain torch: HSIC, distillation, perturbation, ADMM, sparsity sets, allocation."""
