FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bot bot
COPY adapters adapters
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --disable-pip-version-check ".[postgres]"

FROM python:3.13-slim
COPY --from=build /venv /venv
RUN useradd --uid 10001 --create-home --home-dir /app magpie && install --directory --owner magpie /app/data
USER magpie
WORKDIR /app
# Secrets are no part of the image: pass them with --env-file or your orchestrator's secrets.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 BOT_HOST=0.0.0.0 BOT_PORT=8080 BOT_LOG=json
VOLUME /app/data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/healthz' % os.environ['BOT_PORT'], timeout=2)"]
CMD ["magpie", "serve"]
