"""The demo in short: a real pretrained model gets better at a real domain, and the export answers."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.runs import succeed

EXPERIMENT = "experiment=medical_qlora_smol"


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare, train 12 of the demo's steps, evaluate and export; give the run directory."""
    folder = tmp_path_factory.mktemp("demo")
    data = "data.sources.icd10cm.max_documents=4000"
    succeed(folder, "prepare", EXPERIMENT, data)
    succeed(folder, "train", EXPERIMENT, data, "loop.max_steps=12", "tracker=disabled")
    counts = [
        "evaluation.held_out_documents=48",
        "evaluation.answer_documents=4",
        "evaluation.general_documents=8",
        "evaluation.bootstrap_samples=500",
    ]
    succeed(folder, "evaluate", "name=medical_qlora_smol", *counts)
    succeed(folder, "export", "name=medical_qlora_smol")
    return folder / "runs" / "medical_qlora_smol"


def test_the_held_out_medical_loss_falls_by_a_third_with_the_intervals_apart(specialist: Path) -> None:
    scores = json.loads((specialist / "report" / "report.json").read_text())["scores"]["domain"]

    assert scores["after"]["value"] < 0.7 * scores["before"]["value"]
    assert scores["after"]["high"] < scores["before"]["low"]


def test_the_report_opens_offline(specialist: Path) -> None:
    page = (specialist / "report" / "report.html").read_text()

    assert 'src="http' not in page
    assert 'href="http' not in page
    assert (specialist / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_exported_model_answers_in_plain_transformers_through_its_chat_template(specialist: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(specialist / "model")
    model = AutoModelForCausalLM.from_pretrained(specialist / "model")
    chat = [
        {"role": "system", "content": "ICD-10-CM"},
        {
            "role": "user",
            "content": "Which chapter of ICD-10-CM does the code S72.0 (Fracture of femur) belong to?",
        },
    ]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)

    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    # Twelve steps teach the form of an answer, not yet every chapter.
    assert re.match(r"Chapter \d+: \w+", answer), answer
    assert output[0, -1] == tokenizer.eos_token_id, "the end of the turn was trained"
