import json

import pytest

from medq import doctor
from medq.cli import main
from medq.quantize import dynamic, static
from medq.quantize.engines import Unsupported


@pytest.fixture(scope="module")
def found():
    return doctor.report()


def test_the_command_prints_the_report(found, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "report", lambda: found)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert main(["doctor"]) == 0
    assert found["integers"] in capsys.readouterr().out
    nothing = doctor.fitness(None, {"fbgemm": "none", "qnnpack": "none"}, [])
    monkeypatch.setattr(doctor, "report", lambda: found | {"regimes": nothing})
    assert main(["doctor"]) == 1


def test_the_report_names_engines_and_every_regime(found):
    import torch

    for name, state in found["engines"].items():
        assert (state == "works") == (name in torch.backends.quantized.supported_engines)
    assert list(found["regimes"]) == ["fp32", "fp16", "ptq-fbgemm", "ptq-qnnpack", "qat-fbgemm", "qat-qnnpack"]
    assert found["versions"]["torch"] == torch.__version__
    assert "onnxruntime" in found["packages"]["peers"]
    said = doctor.text(found)
    assert "ptq-qnnpack" in said and found["integers"] in said


@pytest.mark.parametrize(
    "instructions, said",
    [
        (["avx2", "avx512_vnni"], "cannot saturate"),
        (["avx2"], "Without VNNI"),
        (["asimd", "asimddp"], "Arm"),
        ([], "No instructions"),
    ],
)
def test_what_instructions_mean_for_the_reduced_range(instructions, said):
    assert said in doctor.integers(instructions)


@pytest.mark.parametrize("module", [static, dynamic])
def test_an_engine_that_refuses_either_kind_is_named_with_its_reason(monkeypatch, module):
    def refuse(*_):
        raise Unsupported("engine qnnpack is not available on this processor")

    monkeypatch.setattr(module, "convert", refuse)
    assert doctor._try("qnnpack") == "engine qnnpack is not available on this processor"


def test_what_no_engine_converts_is_not_timed():
    found = doctor.fitness(None, {"fbgemm": "works", "qnnpack": "not here"}, ["avx2"])
    assert found["ptq-qnnpack"] == {"train": "not needed", "convert": "no: not here", "time": "no: not here"}
    assert found["qat-fbgemm"]["train"] == "yes, on the CPU (slow)" and found["fp16"]["time"].startswith("no")
    assert "emulated" in found["fp16"]["train"]


def test_a_gpu_changes_what_can_be_trained_and_timed(found):
    gpu = {"name": "G", "memory_gib": 16, "capability": "7.0", "cuda": "12"}
    regimes = doctor.fitness(gpu, {"fbgemm": "works", "qnnpack": "works"}, [])
    assert regimes["fp16"] == {"train": "yes", "convert": "not needed", "time": "yes"}
    report = found | {"gpu": gpu, "regimes": regimes}
    assert "capability 7.0" in doctor.text(report)
