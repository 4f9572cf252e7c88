# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target api    -t bdlab-api .      HTTP, relay, migrations; no torch
#   docker build --target worker -t bdlab-worker .   training and interactive workers; torch with CUDA from its wheels

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:$PATH BDLAB_HOME=/var/lib/bdlab
RUN useradd --create-home --uid 10001 bdlab \
    && install -d -o bdlab -g bdlab /var/lib/bdlab /var/lib/bdlab/data
WORKDIR /srv/bdlab

# The environments are created before the code is copied, so that a code change does not reinstall them.
FROM base AS api-environment
RUN python -m venv /opt/venv
COPY requirements/ requirements/
RUN --mount=type=cache,target=/root/.cache/pip pip install -r requirements/server.txt "setuptools>=77"

FROM api-environment AS worker-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r requirements/torch.txt -c requirements/worker.txt \
    && pip install -r requirements/worker.txt

FROM base AS api
COPY --from=api-environment /opt/venv /opt/venv
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && python -m compileall -q app bdlab migrations worker
USER bdlab
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "app.operations.server", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
COPY --from=worker-environment /opt/venv /opt/venv
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && python -m compileall -q app bdlab migrations worker
USER bdlab
CMD ["bdlab", "worker"]
