#!/bin/sh
# A CLIP trained here, distilled into MobileViT-XXS, both exported, verified, benched, and searched with.
set -e
python -c "from pathlib import Path; from edgekit.demo.drawings import write_drawings as draw
draw(Path('drawings'), labelled=600, unlabelled=2400, val=600, size=72, seed=0)"
edgekit train clip --data drawings/captions.csv --model clip-demo --epochs 6 -o runs/clip
edgekit distill --data drawings --teacher runs/clip --student mobilevit_xxs --image-size 64 --epochs 10 -o runs/xxs
edgekit export runs/clip --format onnx,tflite,coreml -o bundles/clip
edgekit export runs/xxs --format onnx,tflite,coreml -o bundles/xxs
edgekit verify bundles/clip
edgekit verify bundles/xxs
edgekit bench bundles/xxs bundles/clip/image --baseline runs/xxs --data drawings --budget 30 -o bench.json
edgekit search drawings/val "a purple star" --model bundles/clip -k 3
edgekit search drawings/val "a purple star" --model bundles/xxs --model bundles/clip/text --index xxs.npz -k 3
