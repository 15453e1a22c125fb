"""What to choose, before anything is quantized."""

from analysed import IMAGES, OPTIONS

from adabm_basicsr import analyse


def test_ways_are_the_cheapest_settings_that_are_enough(analysis):
    for way in analysis.ways:
        if way.self_psnr is None:
            assert max(setting.self_psnr for setting in analysis.settings) < way.wanted
            assert way.options == f"target: {{self_psnr: {way.wanted}}}"
        else:
            assert way.self_psnr >= way.wanted
    assert {way.wanted for way in analysis.ways} == {40, 45, 50}
    assert sum(setting.knee for setting in analysis.settings) == 2
    assert analysis.choice.a_bits == 8
    assert analysis.choice.options in analysis.advice[0]


def test_the_same_seed_gives_the_same_analysis(tiny, analysis):
    assert analyse(tiny, IMAGES, **OPTIONS) == analysis
