"""OpenVINO GenAI's side of benchmarks/serving.py, by its documented interface, where there is no plaudit.

Started by serving.py. The model is exported once, in fp32, by `optimum-cli` of the same environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import sides


def main() -> None:
    rounds = sides.Rounds()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    exported = arguments.model.with_name(arguments.model.name + "-openvino")
    if not exported.exists():
        program = Path(sys.executable).with_name("optimum-cli")
        task = ("--task", "text-generation-with-past", "--weight-format", "fp32")
        subprocess.run([program, "export", "openvino", "--model", arguments.model, *task, exported], check=True)
    # It would compute in bfloat16 and keep keys and values in eight bits.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    properties = {"INFERENCE_NUM_THREADS": arguments.threads, **exact}
    pipeline = openvino_genai.LLMPipeline(exported, "CPU", **properties)
    ids = np.array(json.loads(arguments.prompts.read_text()), dtype=np.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = arguments.new
    config.ignore_eos, config.do_sample = True, False
    rounds.wait(versions={name: importlib.metadata.version(name) for name in ("openvino", "openvino-genai")})
    while True:
        rounds.wait(found=[list(each) for each in pipeline.generate(inputs, config).tokens])


if __name__ == "__main__":
    main()
