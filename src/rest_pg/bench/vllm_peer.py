"""The other side of the sampling benchmark: runs in vLLM's own environment, which lacks this package.

Reads one JSON request per line, answers with the number of tokens that were written.
"""

import json
import os
import sys


def main() -> None:
    """Load the model named by the first argument, say so, and answer requests."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # left alone it keeps a core for a server's own work, which there is none of here
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        trust_remote_code=False,
        seed=7,
        max_model_len=2048,
        max_num_seqs=64,
        enable_prefix_caching=True,
        enforce_eager=sys.argv[2] == "eager",
    )
    print("PEER {}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = SamplingParams(
            n=request["n"],
            temperature=request["temperature"],
            top_p=request["top_p"],
            max_tokens=request["max_new_tokens"],
            ignore_eos=True,
        )
        # another run of the same prompt must not find its own prefix from before
        llm.reset_prefix_cache()
        outputs = llm.generate(request["prompts"], params, use_tqdm=False)
        tokens = sum(len(o.token_ids) for output in outputs for o in output.outputs)
        print("PEER", json.dumps({"tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
