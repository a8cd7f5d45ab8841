"""The README's Python example runs as printed, its commands are the ones CI runs, and the files it names are there."""

import pathlib
import re

import pytest

import gdflow as gf

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["estimate"].certified == 2000
    assert gf.classify(namespace["problem"], namespace["saddle"]).kind == "strict saddle"


def test_ci_runs_the_commands_of_the_readme():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    install, test = re.findall(r"^pip install .* && .*$", readme, flags=re.MULTILINE)
    assert install == "pip install -e . && gdflow basins"
    # In CI: quiet, on few starts, into a temporary folder.
    assert install.replace("pip install", "pip install --quiet") + " --num" in ci
    assert test.replace("pip install", "pip install --quiet") in ci


def test_files_that_the_readme_names_are_there():
    names = re.findall(r"\]\((?!https:)(.*?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "notebooks/basins.png" in names
    for name in names:
        assert (ROOT / name).is_file(), name


def test_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [gf.__version__]
