# Peregrine on CPUs: docker build -t peregrine .
# On NVIDIA GPUs:     docker build -t peregrine:cuda --target cuda .
# Pin the two base images by digest where you build.
ARG NODE_IMAGE=node:24-bookworm-slim
ARG CUDA_IMAGE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

FROM ${NODE_IMAGE} AS build
WORKDIR /app
# For the kernels of CPUs with AMX; on others they stay aside.
RUN apt-get update \
  && apt-get install -y --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*
COPY package.json package-lock.json .npmrc ./
RUN npm ci
# What peregrine_build_info says: there is no .git here.
ARG GIT_COMMIT=unknown
COPY . .
RUN GIT_COMMIT=${GIT_COMMIT} npm run build \
  && npm run build:kernels \
  && node dist/server/cli.js export --from demo/kuairand --out bundles/kuairand \
  && node dist/server/cli.js verify bundles/kuairand
# Nothing but what serves: no tests, no benches, no ONNX Runtime for other systems.
RUN npm prune --omit=dev \
  && rm -rf dist/bench dist/test node_modules/onnxruntime-node/bin/napi-v6/darwin \
    node_modules/onnxruntime-node/bin/napi-v6/win32 \
  && find dist -name '*.test.js*' -delete

# What both images hold of this repository.
FROM scratch AS app
COPY --from=build /app/package.json /app/LICENSE /app/
COPY --from=build /app/deploy/healthcheck.mjs /app/deploy/
COPY --from=build /app/node_modules /app/node_modules
COPY --from=build /app/dist /app/dist
COPY --from=build /app/kernels /app/kernels
COPY --from=build /app/server/playground/page /app/server/playground/page
COPY --from=build /app/demo /app/demo
COPY --from=build /app/bundles /app/bundles

# The CUDA libraries of ONNX Runtime are too large for npm: the package's own script fetches them.
FROM build AS cuda-provider
RUN ONNXRUNTIME_NODE_INSTALL=cuda12 npm rebuild onnxruntime-node --ignore-scripts=false \
  && ls node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime_providers_cuda.so

FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update \
  && apt-get install -y --no-install-recommends libstdc++6 \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/node /usr/local/bin/node
COPY --from=app /app /app
COPY --from=cuda-provider /app/node_modules/onnxruntime-node/bin /app/node_modules/onnxruntime-node/bin
WORKDIR /app
ENV NODE_ENV=production \
  PEREGRINE_HOST=0.0.0.0 \
  PEREGRINE_PROVIDER=cuda
USER 1000:1000
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["node", "deploy/healthcheck.mjs"]
ENTRYPOINT ["node", "--enable-source-maps", "dist/server/cli.js"]
CMD ["serve"]

# The last stage is what `docker build` makes. Node is process 1 and handles SIGTERM itself; it has no
# children, so that nobody needs an init. Nothing is written: the root may be read-only.
FROM ${NODE_IMAGE} AS cpu
COPY --from=app /app /app
WORKDIR /app
ENV NODE_ENV=production \
  PEREGRINE_HOST=0.0.0.0
USER 1000:1000
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["node", "deploy/healthcheck.mjs"]
ENTRYPOINT ["node", "--enable-source-maps", "dist/server/cli.js"]
CMD ["serve"]
