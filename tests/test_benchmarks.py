"""Benchmarks fit the code, pages fit their numbers, and the script for a GPU runs as far as it can without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def run_python(code: str) -> list[str]:
    """The lines that ``code`` prints; it can import the benchmarks."""
    path = "import sys; sys.path.insert(0, 'benchmarks')\n"
    command = [sys.executable, "-c", path + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_benchmark_still_fits_the_code_that_it_imports() -> None:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
    assert "attacks_cifar10" in names
    run_python(f"for name in {names}: __import__(name)")


PAGES = """
from pathlib import Path
import abl_plus_cifar10, attacks_cifar10, fidelity, precision
for path, text in (
    (abl_plus_cifar10.TABLE, abl_plus_cifar10.page()),
    (attacks_cifar10.TABLE, attacks_cifar10.page()),
    (fidelity.PAGE, fidelity.page(fidelity.Setting(Path("abl-authors.safetensors")))),
    (precision.TABLE, precision.page()),
):
    print(path.name, path.read_text() == text)
"""


def test_pages_are_what_their_files_of_numbers_say() -> None:
    """Without it, a row that is edited on a page is lost when the next one is measured."""
    names = ("abl-plus-cifar10", "attacks-cifar10", "fidelity", "precision")
    assert run_python(PAGES) == [f"{name}.md True" for name in names]


def test_numbers_are_replaced_by_key_and_kept_in_order(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom _numbers import Numbers\n"
        f"numbers = Numbers(Path({str(tmp_path / 'page.md')!r}))\n"
        "print(numbers.find('a'))\n"
        "for key, value in (('b', 1), ('a', 2), ('b', 3)): numbers.store(key, {'value': value})\n"
        "print(numbers.read(), numbers.find('b'))"
    )
    assert run_python(code) == ["None", "{'a': {'value': 2}, 'b': {'value': 3}} {'value': 3}"]
    assert len((tmp_path / "page.jsonl").read_text().splitlines()) == 2


@pytest.mark.long  # a minute: trains eighteen cells and two victims
def test_the_gpu_script_goes_through_all_parts_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = run(tmp_path, "--device", "cpu", "--quick", "--minutes", "0.05")
    assert "time is up; the same command goes on" in first.stdout, first.stderr
    begun = {line for line in first.stdout.splitlines() if line.endswith(": begun")}
    second = run(tmp_path, "--device", "cpu", "--quick")
    assert second.returncode == 0, second.stderr
    assert begun
    assert not begun & set(second.stdout.splitlines())
    page = (tmp_path / "gpu.md").read_text()
    assert "Measured with `python benchmarks/gpu.py OUT --device cpu --quick` on " in page
    for arm in ("undefended", "abl", "abl_plus", "fine_pruning", "nad", "anp", "i_bau"):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {arm} |")]
        assert row.count("/") == 4
    assert "| small_cnn | evaluation | " in page
    assert "Not available: there is no GPU" in page
    for network in ("preact_resnet18", "wide_resnet_16_1"):
        assert "| fine_tuning (benchmark) | " in page.partition(f"## Fidelity with {network}\n")[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("gpu.py: error: there is no GPU;")
