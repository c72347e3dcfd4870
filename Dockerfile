# A minimal CPU image. The base needs Python 3.11 or newer and apt:
#   docker build -t cqd-hub .
#   docker run --rm -v "$PWD/runs:/work/runs" --security-opt seccomp=unconfined cqd-hub evolve quickstart
# Without that option bubblewrap cannot make its namespaces and the weaker Landlock sandbox is used.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

RUN apt-get update \
 && apt-get install -y --no-install-recommends bubblewrap \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/cqd-hub
# For example "--index-url ..." of PyTorch's CPU builds, which are a tenth of the size.
ARG TORCH_OPTIONS=""
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY cqd_hub cqd_hub
COPY recipes recipes
COPY evals evals
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_OPTIONS} torch \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt .

RUN useradd --create-home --uid 1000 cqd && install -d -o cqd /work
USER cqd
WORKDIR /work
ENV PATH=/opt/venv/bin:$PATH
ENTRYPOINT ["cqd-hub"]
CMD ["--help"]
