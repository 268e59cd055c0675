"""Run transformers' own model and generation tests on three MyPT architectures and, in the same way, on in-tree Llama.

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
    python scripts/mixins.py transformers

The tests need `pip install httpx parameterized peft`, and those of caches in few bits optimum-quanto and hqq. Prints
how many tests passed, and every test that Llama passes and MyPT does not, with the reason; exits with 1 if a test of
MyPT failed. docs/model.md shows a run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HARNESS = ROOT / "tests/models/mixins.py"
VARIANTS = ("Rotary", "Grouped", "Learned", "Llama")
WEIGHT = {"skipped": 0, "passed": 1, "failed": 2}
Results = dict[str, dict[str, tuple[str, str]]]


def run(transformers: Path, workers: int, only: str) -> Results:
    """Run the harness in a process whose `tests` package is transformers'; variant -> test -> (outcome, reason)."""
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder, "pytest.ini"), Path(folder, "report.xml")
        settings.write_text("[pytest]\nverbosity_subtests = 0\n")
        command = [sys.executable, "-m", "pytest", "-c", settings, "--rootdir", ROOT, f"--junitxml={report}"]
        command += ["-q", "-p", "no:cacheprovider", "--noconftest", "--import-mode=prepend", "-W", "ignore", HARNESS]
        command += ["-k", only] if only else []
        command += ["-n", str(workers)] if workers > 1 else []
        paths = [str(transformers), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {"RUN_SLOW": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ}
        subprocess.run(command, env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
        if not report.exists():
            raise SystemExit(f"pytest wrote no report; is {transformers} a checkout of transformers?")
        return read(ElementTree.parse(report))


def read(report: ElementTree.ElementTree) -> Results:
    """Outcomes from pytest's JUnit report; of a test in parts, failed if one failed, skipped if all were skipped."""
    results: Results = {name: {} for name in VARIANTS}
    for case in report.iter("testcase"):
        variant = case.get("classname", "").rpartition(".")[2].removesuffix("Test")
        if variant not in results:  # a file that could not be imported
            raise SystemExit("".join(case.itertext()))
        problem = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        outcome = {None: "passed", "skipped": "skipped"}.get(None if problem is None else problem.tag, "failed")
        lines = "" if problem is None else (problem.get("message") or "").strip().splitlines()
        known = results[variant].get(case.get("name"))
        if known is None or WEIGHT[outcome] > WEIGHT[known[0]]:
            results[variant][case.get("name")] = (outcome, lines[0][:200] if lines else "")
    return results


def table(results: Results) -> list[str]:
    lines = [f"{'':10}{'passed':>8}{'skipped':>9}{'failed':>8}"]
    for variant, tests in results.items():
        outcomes = [outcome for outcome, _ in tests.values()]
        counts = [outcomes.count(outcome) for outcome in ("passed", "skipped", "failed")]
        lines.append(f"{variant:10}{counts[0]:8}{counts[1]:9}{counts[2]:8}")
    return lines


def differences(results: Results) -> list[str]:
    """Every failed test, and every test that passes for Llama and not for MyPT."""
    lines = []
    for test in sorted({test for tests in results.values() for test in tests}):
        for variant, tests in results.items():
            outcome, reason = tests.get(test, ("lacking", "the test class has no such test"))
            behind = outcome != "passed" and results["Llama"].get(test, ("",))[0] == "passed"
            if behind or outcome == "failed":
                lines.append(f"{outcome:8} {variant:8} {test}: {reason}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transformers", type=Path, help="a checkout of transformers, of the installed version")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="a pytest -k expression (all tests)")
    parser.add_argument("--workers", type=int, default=1, help="processes of pytest-xdist (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every outcome to this file")
    options = parser.parse_args()
    start = time.perf_counter()
    results = run(options.transformers.resolve(), options.workers, options.only)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    print("\n".join([*table(results), "", *(differences(results) or ["MyPT passes whatever Llama passes."])]))
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")
    return int(any(outcome == "failed" for name in VARIANTS[:3] for outcome, _ in results[name].values()))


if __name__ == "__main__":
    sys.exit(main())
