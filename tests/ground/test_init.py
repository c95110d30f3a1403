import os
import re
import subprocess
import sys

import pytest


def run(root, code, **environment):
    ours = ("GLOG_v", "ONEDNN_MAX_CPU_ISA", "MS_OM_PATH")
    kept = {name: text for name, text in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**kept, **environment}, capture_output=True, text=True, timeout=120
    )


def test_the_package_alone_loads_no_framework_and_sets_the_environment(root):
    show = "print('mindspore' in sys.modules, os.environ['ONEDNN_MAX_CPU_ISA'], os.environ['GLOG_v'])"
    code = f"import os, sys, mg; {show}"
    assert run(root, code).stdout == "False AVX2 3\n"
    assert run(root, code, ONEDNN_MAX_CPU_ISA="ALL", GLOG_v="1").stdout == "False ALL 1\n"


@pytest.mark.parametrize("first", ["mg.ops", "mg.pipelines.reconstruct"])
def test_choosing_a_device_is_one_line_whatever_was_imported_first(root, first):
    result = run(root, f"import {first}; from mg import device; device.setup(); device.setup()")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"[\d:]{8} INFO running on (CPU|GPU|Ascend) \(auto: .*\), graph mode\n", result.stderr)
