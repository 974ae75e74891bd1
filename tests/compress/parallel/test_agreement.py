"""What processes must agree on: the code that is hashed is all of training's."""

from __future__ import annotations

from edgekit.compress.parallel.agreement import code_facts, source_files


def test_the_code_of_every_stage_of_training_is_compared() -> None:
    files = source_files()
    needed = {"compress/training/loop.py", "compress/distill/task.py", "compress/recipe.py", "models/student.py"}
    assert needed | {"edgekit/preprocess.py"} <= files.keys()
    assert all(path.is_file() for path in files.values())
    assert not any(name.startswith(("export/", "bench/", "edgekit/cli/")) for name in files)
    assert code_facts() == code_facts()
