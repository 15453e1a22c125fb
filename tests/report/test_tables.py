"""Tables of a report."""

from adabm_basicsr.report.tables import (
    Cell,
    Table,
    classes_table,
    in_order,
    mapped_set,
    summary_table,
)


def figures_with_map(range_factors=(None, None, None)):
    facts = []
    for bits, factor in zip((3.0, 4.0, 4.0), range_factors, strict=True):
        facts.append(
            {
                "bits": bits,
                "range_factor": factor,
                "smallest_factor": factor,
                "largest_factor": factor,
            }
        )
    bit_map = {"classes": [[1, 2, 2], [1, 1, 2]], "class_facts": facts}
    small = {"classes": [[0]], "class_facts": facts}
    return {"sets": {"Small": {"bit_map": small}, "Large": {"bit_map": bit_map}}}


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_classes_are_those_of_the_set_with_most_tiles():
    figures = figures_with_map()
    assert mapped_set(figures) == "Large"
    table = classes_table(figures)
    assert table.headers == ["class", "tiles", "bits"]
    assert texts(table) == [
        ["simple", "0", "3.00"],
        ["middle", "3", "4.00"],
        ["complex", "3", "4.00"],
    ]
    assert table.rows[2][2].pointer == "/sets/Large/bit_map/class_facts/2/bits"


def test_classes_have_their_range_factors_where_ranges_differ():
    table = classes_table(figures_with_map((1.0, 0.99, 1.25)))
    assert table.headers == ["class", "tiles", "bits", "range factor", "smallest", "largest"]
    assert texts(table)[2] == ["complex", "3", "4.00", "1.25", "1.25", "1.25"]


def test_no_classes_without_a_map():
    assert classes_table({"sets": {"Val": {"bit_map": None}}}).rows == []


def test_metrics_come_before_costs():
    assert in_order(["fab", "psnr", "size_share", "bitops", "psnr", "lpips"]) == [
        "psnr",
        "lpips",
        "fab",
        "bitops",
        "size_share",
    ]


def test_pointers_and_markdown_are_escaped():
    cell = Cell("a|b", "a|b", ("sets", "x/y~z", 0))
    assert cell.pointer == "/sets/x~1y~0z/0"
    assert "a\\|b" in Table("Any", ["name"], [[cell]]).text("github")


def test_activations_of_few_bits_are_said_to_be_no_faster():
    [[_, few]] = summary_table({"asked": {"a_bits": 4}}).rows
    assert (few.value, few.text) == (
        4,
        "4 (engines multiply integers of 8 bits: those are as fast)",
    )
    [[_, eight]] = summary_table({"asked": {"a_bits": 8}}).rows
    assert eight.text == "8"
