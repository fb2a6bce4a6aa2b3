"""Run the tests marked `processor` as lesser processors would compute: once for each restricted instruction set.

    python tests/lesser_processors.py [arguments of pytest]

Each library takes a limit of its own from the environment: oneDNN (products in bf16), ATen (what is computed element
by element, and attention), MKL (products in fp32 and fp64), and moekit's native kernels. Counts by set are printed; the
exit status is 1 where a test failed. What a processor has more than this machine (AMX, say) cannot be tried here.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from moekit.kernels.native import available
from moekit.kernels.native.module import INSTRUCTION_SET_VARIABLE, native


@dataclass(frozen=True)
class Processor:
    """What a kind of processor has. native: the name of the set that moekit's kernels are compiled for."""

    name: str
    onednn: str
    aten: str
    mkl: str | None
    native: str

    def environment(self) -> dict[str, str]:
        found = {
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "ATEN_CPU_CAPABILITY": self.aten,
            INSTRUCTION_SET_VARIABLE: self.native,
        }
        return found if self.mkl is None else found | {"MKL_CBWR": self.mkl}


# MKL under a limit gives the same bits at every address, so the last set leaves it as it is.
PROCESSORS = (
    Processor("SSE 4.1", "SSE41", "default", "COMPATIBLE", "portable"),
    Processor("AVX2", "AVX2", "avx2", "AVX2", "avx2"),
    Processor("AVX-512 without bf16", "AVX512_CORE", "avx512", None, "avx512"),
)


def main(arguments: list[str]) -> int:
    runnable = native().instruction_sets() if available() else []
    lines, failed = [], False
    for processor in PROCESSORS:
        if processor.native not in runnable:
            lines.append(
                f"{processor.name}: not run, since this machine runs {', '.join(runnable) or 'no native kernels'}"
            )
            continue
        print(f"== {processor.name}: {processor.environment()}", flush=True)
        begin = time.monotonic()
        counts, status = _run(processor, arguments)
        failed = failed or status != 0
        lines.append(f"{processor.name}: {counts} in {time.monotonic() - begin:.0f} s")
    print(*lines, sep="\n")
    return 1 if failed else 0


def _run(processor: Processor, arguments: list[str]) -> tuple[str, int]:
    """The counts that pytest prints at its end, as `3 failed, 40 passed`, and its exit status."""
    command = [sys.executable, "-m", "pytest", "-v", "-n", "logical", "--dist", "loadfile"]
    command += ["-m", "processor and not alone", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | processor.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
    summaries = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", done.stdout, re.MULTILINE)
    return summaries[-1] if summaries else f"pytest ended with status {done.returncode}", done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
