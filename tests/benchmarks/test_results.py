"""Rows of results: means over seeds, and published losses beside them."""

from published import PUBLISHED
from results import (
    SCOPES,
    Row,
    choose,
    markdown,
    published_beside,
    summarise,
    table_of_comparison,
    table_of_results,
)


def run(seed, psnr, **other):
    figures = {
        "psnr": psnr,
        "full_precision_psnr": 31.0,
        "ssim": 0.9,
        "self_psnr": 40.0,
        "fab": 4.0,
    }
    return {
        "network": "EDSR",
        "scale": 4,
        "scope": "full",
        "bits": "W4A4",
        "variant": "best",
        "seed": seed,
        "date": f"2026-01-0{seed}",
        "cpu": "a CPU",
        "bytes": 1e6,
        "units": 4000,
        "calibration_fab": 3.9,
        "sets": {"Set5": figures},
        **other,
    }


def row(seeds=1, date="2026-01-01", **other):
    setting = {"network": "EDSR", "scale": 4, "scope": "full", "bits": "W4A4", "variant": "best"}
    return Row(**{**setting, "seeds": seeds, "date": date, **other})


def test_runs_are_averaged_over_seeds():
    table = table_of_results(summarise([run(1, 30.8), run(2, 30.6)]))
    assert markdown(table).splitlines() == [
        "| network | scope | variant | bits | Set5 loss | SSIM | self-PSNR (dB) | FAB | size "
        "| forward units | seeds | measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| EDSR x4 | full | best | W4A4 | 0.300 ± 0.141 dB | 0.9000 | 40.0 | 3.90 / 4.00 "
        "| 1.000 MB | 4000 | 2 | 2026-01-02 |",
    ]


def test_what_is_not_known_is_left_out():
    sets = {"Set5": {"loss": 12.34}, "Set14": {"self_psnr": 30.0}}
    assert table_of_results([row(sets=sets)]) == [
        {
            "network": "EDSR x4",
            "scope": "full",
            "variant": "best",
            "bits": "W4A4",
            "Set5 loss": "12.3 dB",
            "self-PSNR (dB)": "- / 30.0",
            "seeds": "1",
            "measured": "2026-01-01",
        }
    ]


def test_most_seeds_count_then_the_newest():
    three = row(seeds=3)
    later = row(seeds=3, date="2026-01-02")
    other = row(variant="fast")
    single = row(date="2026-01-03")
    assert choose([three, other, later, single]) == [later, other]


def test_published_losses_stand_beside_ours():
    losses = {"Set5": {"loss": 0.106}}
    rows = [
        row(sets=losses),
        row(variant="best, fixed bits", sets=losses),
        row(network="IMDN", sets=losses),
    ]
    table = table_of_comparison(rows, published_beside(rows))
    assert {(cells["network"], cells["bits"]) for cells in table} == {("EDSR x4", "W4A4")}
    assert table[-1]["source"] == "ours, `best`"
    assert table[-1]["Set5 loss"] == "0.106 dB"
    assert [cells["trained"] for cells in table].count("yes") == 1


def test_another_scope_is_not_compared():
    rows = [row(network="SwinIR", scope="full"), row(network="SwinIR", scope="body")]
    scopes = [cells["scope"] for cells in table_of_comparison(rows) if "ours" in cells["source"]]
    assert scopes == ["body"]


def test_published_rows_name_scopes_that_there_are():
    assert {entry.scope for entry in PUBLISHED} <= {*SCOPES, None}
