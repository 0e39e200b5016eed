# docker build -t neural-rdm . && docker run --rm --gpus all --shm-size 8g -v "$PWD/outputs:/work/outputs" neural-rdm train
FROM python:3.11-slim
# PyTorch brings the CUDA libraries; git tells a run's provenance the commit of a mounted checkout.
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY src src
RUN python -m pip install --no-cache-dir "torch==2.13.0" ".[text,loggers]"
WORKDIR /work
ENTRYPOINT ["neural-rdm"]
CMD ["--help"]
