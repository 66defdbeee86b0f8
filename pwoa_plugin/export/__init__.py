"""Networks in the forms that ship."""
