"""The report of the GPU benchmark: sittings merge, rows of something else are refused, failures are tried again."""

import json

import pytest
from gpu_report import Figure, Report, ReportError, Row, line, shares, sources_digest

WHAT = {"card": "H100", "sources": "abc"}


def report(out, what=WHAT, **limits):
    return Report(out, what, {"date": "today", "limits": limits})


def row(name, measure=lambda: [2.0, 1.0, 3.0], figure=Figure()):  # noqa: B008 - it is frozen
    return Row(name, measure, figure, 1)


def raises():
    raise RuntimeError("no\nmemory")


def test_a_second_sitting_goes_on_where_the_first_one_ended(tmp_path):
    out = tmp_path / "gpu.json"
    first = report(out, read_only_TB_s=4.0)
    first.add(row("a", figure=Figure(tokens=8, read=4 * 10**9)), beside=lambda: {"watts": 400})
    second = report(out, read_only_TB_s=2.0)
    assert not second.wants("a") and second.wants("b")
    second.add(row("b", figure=Figure(read=4 * 10**9)), beside=dict)
    saved = json.loads(out.read_text())
    a, b = saved["rows"]
    assert (a["ms"], a["runs_ms"], a["watts"], a["tokens_per_second"]) == (2.0, [2.0, 1.0, 3.0], 400, 4000)
    assert (a["share_of_read_bandwidth"], b["share_of_read_bandwidth"]) == (0.5, 1.0)  # each of its own sitting
    assert (a["sitting"], b["sitting"], len(saved["sittings"])) == (0, 1, 2)


def test_a_row_that_fails_is_kept_and_tried_once_more(tmp_path):
    out = tmp_path / "gpu.json"
    for attempt in (1, 2):
        found = report(out)
        assert found.wants("a")
        assert found.add(row("a", raises), beside=dict)["attempts"] == attempt
    assert not report(out).wants("a")
    assert line(report(out).rows["a"]).endswith("not measured: RuntimeError: no memory")


@pytest.mark.parametrize("key", list(WHAT))
def test_rows_of_another_card_or_of_other_code_are_refused_in_one_line(tmp_path, key):
    out = tmp_path / "gpu.json"
    report(out).add(row("a"), beside=dict)
    with pytest.raises(ReportError) as error:
        report(out, WHAT | {key: "other"})
    assert f"holds rows of {key} {WHAT[key]}, and this is {key} other" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"card": "H100", "sources": "abc", "sittings": [], "rows": [1]}'])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    out = tmp_path / "gpu.json"
    out.write_text(text)
    with pytest.raises(ReportError, match="is no report of this benchmark"):
        report(out)
    assert out.read_text() == text


def test_shares_are_left_out_where_a_limit_was_not_measured():
    assert shares(2.0, Figure(flops=4e9), {}) == {"TFLOP_s": 2.0}
    assert shares(2.0, Figure(flops=4e9), {"matmul_TFLOP_s": 4.0})["share_of_matmul_rate"] == 0.5


def test_the_digest_names_the_sources_that_are_measured():
    assert len(sources_digest()) == 12 and sources_digest() == sources_digest()
