# A CPU image; docs/docker.md says how to build and run it. The base needs apt, and Python 3.11 or
# newer with venv.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The sandbox that model-written text runs in.
RUN apt-get update \
 && apt-get install -y --no-install-recommends bubblewrap \
 && apt-get clean && rm -rf /var/lib/apt/lists/*

# Dependencies first, so that a change of the code does not install them again. TORCH_OPTIONS is for
# pip, such as the "--index-url ..." of PyTorch's CPU builds. Headers and tests of the largest
# packages are left out.
WORKDIR /opt/cqd-hub
ARG TORCH_OPTIONS=""
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv /opt/venv \
 && python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_OPTIONS} torch \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt \
 && cd /opt/venv/lib/python3*/site-packages \
 && rm -rf torch/include torch/test torch/bin/test_* pandas/tests pyarrow/include pyarrow/tests \
 && find scipy sklearn sympy -name tests -prune -exec rm -rf {} +

COPY README.md LICENSE ./
COPY cqd_hub cqd_hub
COPY recipes recipes
COPY evals evals
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps . \
 && rm -rf /opt/cqd-hub

# Open to every user id, for --user with a mounted folder.
RUN useradd --create-home --uid 1000 cqd \
 && install -d -o cqd -g cqd -m 1777 /home/cqd /home/cqd/.cache /work /work/runs
USER cqd
WORKDIR /work
ENV PATH=/opt/venv/bin:$PATH HOME=/home/cqd
ENTRYPOINT ["cqd-hub"]
CMD ["--help"]
