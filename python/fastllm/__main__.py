"""python -m fastllm"""

from fastllm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
