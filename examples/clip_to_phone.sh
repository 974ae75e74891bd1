#!/bin/sh
# CLIP → MobileViT-XXS → phone and search, on drawings; or: sh clip_to_phone.sh CAPTIONS PHOTOS "a query" MODEL EPOCHS
set -e
CAPTIONS=${1:-drawings/captions.csv} PHOTOS=${2:-drawings} QUERY=${3:-a purple star} MODEL=${4:-clip-demo} EPOCHS=${5:-6}
[ $# -gt 0 ] || python -c "from pathlib import Path; from edgekit.demo.drawings import write_drawings as draw
draw(Path('drawings'), labelled=600, unlabelled=2400, val=600, size=72, seed=0)"
edgekit train clip --data "$CAPTIONS" --model "$MODEL" --image-size 64 --epochs "$EPOCHS" -o runs/clip
edgekit distill --data "$PHOTOS" --teacher runs/clip --student mobilevit_xxs --image-size 64 --epochs 10 -o runs/xxs
edgekit export runs/clip --format onnx,tflite,coreml -o bundles/clip
edgekit export runs/xxs --format onnx,tflite,coreml -o bundles/xxs || [ $? -eq 1 ]  # go on without a file that fails
edgekit verify bundles/clip
edgekit verify bundles/xxs
edgekit bench bundles/xxs bundles/clip/image --baseline runs/xxs --data "$PHOTOS" --budget 30 -o bench.json
edgekit search "$PHOTOS/val" "$QUERY" --model bundles/clip -k 3
edgekit search "$PHOTOS/val" "$QUERY" --model bundles/xxs --model bundles/clip/text --index xxs.npz -k 3
