# The command `pwoa` in a container, from the wheel: `python -m build --wheel`, then `docker build -t pwoa .`, then
# `docker run --rm -v "$PWD:/work" pwoa prune prune.yaml --out runs/a`. For a GPU: --build-arg TORCH=cu128, --gpus all.
FROM python:3.12-slim

ARG TORCH=cpu
ARG EXTRAS=demo
COPY dist/*.whl /tmp/wheels/
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}" \
    && wheel="$(ls /tmp/wheels/*.whl)" \
    && pip install --no-cache-dir "${wheel}[${EXTRAS}]" \
    && rm -r /tmp/wheels \
    && pwoa --version

RUN useradd --create-home pwoa && mkdir /work && chown pwoa /work
USER pwoa
WORKDIR /work
ENTRYPOINT ["pwoa"]
CMD ["--help"]
