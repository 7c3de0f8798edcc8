import math

import pytest

from services.inference.engines.metrics_page import MetricsPage, metrics_pattern
from services.inference.engines.sglang import SgLang, _is_first_rank
from services.inference.engines.vllm import load_of

NAMES = ("a", "b", "c_total", "vllm:d")


def page(text, *names, counts=None):
    return MetricsPage(metrics_pattern(*(names or NAMES)), text.encode(), counts)


def test_samples_are_summed_over_labels_and_missing_is_unknown():
    found = page('# HELP a b\na{x="1 2"} 3\na{x="}"} 4.0 1700000000\nab 9\nb 2\nbb{} 3\n')
    assert (found.total("a"), found.mean("a"), found.total("b")) == (7.0, 3.5, 2.0)
    assert found.total("c_total") is None
    assert found.mean("c_total") is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "x"])
def test_what_makes_no_sense_is_unknown(value):
    assert page(f"a 1\na {value}\n").total("a") is None
    assert page(f"a {value}\n").mean("a") is None


def test_the_first_name_that_is_there_counts():
    both = page('b 2\nvllm:d{reason="x"} 5\nvllm:d{reason="y"} 6\n')
    assert both.total("a", "b", "vllm:d") == 2
    assert both.total("a", "vllm:d") == 11


def test_forms_of_lines():
    text = 'a{x="1"}2\r\nb\t3\nvllm:d {y="\\"q\\" \\\\ \\n"} 1e3\n'
    found = page(text)
    assert (found.total("a"), found.total("b"), found.total("vllm:d")) == (2, 3, 1000)
    (sample,) = found.samples("vllm:d")
    assert sample.label("y") == '"q" \\ \n'
    assert sample.label("x") is None


def test_some_samples_can_be_left_out():
    found = page('a{r="0"} 1\na{r="1"} 1\n', counts=lambda s: s.label("r") == "0")
    assert found.total("a") == 1


VLLM_NAMES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "vllm:engine_sleep_state",
    "vllm:prompt_tokens_total",
    "process_start_time_seconds",
)


def vllm(text):
    return load_of(page(text, *VLLM_NAMES))


def test_vllms_gauges_under_their_old_names():
    load = vllm("vllm:gpu_cache_usage_perc 0.5\nvllm:num_requests_running 1\n")
    assert (load.kv_use, load.running, load.queued) == (0.5, 1, None)
    load = vllm("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n")
    assert load.kv_use == 0.25


def test_vllms_queue_by_reason_counts_where_the_sum_is_missing():
    reasons = (
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 2\n'
        'vllm:num_requests_waiting_by_reason{reason="deferred"} 3\n'
    )
    assert vllm(reasons).queued == 5
    assert vllm(reasons + "vllm:num_requests_waiting 4\n").queued == 4


def test_several_engine_cores_are_one_engine():
    load = vllm(
        'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
        'vllm:cache_config_info{engine="0",num_gpu_blocks="100",block_size="16"} 1\n'
        'vllm:cache_config_info{engine="1",num_gpu_blocks="100",block_size="16"} 1\n'
    )
    assert (load.running, load.kv_capacity_tokens) == (5, 3200)
    assert math.isclose(load.kv_use, 0.3)


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",num_gpu_blocks="10"', 160),
        ('block_size="16",num_gpu_blocks="10",kv_cache_size_tokens="128"', 128),
        ('block_size="16",num_gpu_blocks="None"', None),
        ('num_gpu_blocks="10"', None),
        ('block_size="-16",num_gpu_blocks="10"', None),
    ],
)
def test_vllms_capacity(labels, tokens):
    assert vllm(f"vllm:cache_config_info{{{labels}}} 1\n").kv_capacity_tokens == tokens


def test_vllms_adapters_are_those_of_the_latest_sample():
    text = (
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a",'
        'waiting_lora_adapters=""} 1.7e9\n'
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="b,c",'
        'waiting_lora_adapters="d,b"} 1.8e9\n'
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="z",'
        'waiting_lora_adapters=""} NaN\n'
    )
    assert vllm(text).loaded_adapters == ("b", "c", "d")
    assert vllm("").loaded_adapters == ()


def test_a_vllm_that_sleeps_takes_no_requests():
    state = 'vllm:engine_sleep_state{sleep_state="awake"} %d\n'
    assert vllm(state % 0) is None
    assert vllm(state % 1) is not None


def test_sglangs_ranks_report_the_same_requests_once():
    pattern = metrics_pattern("sglang:num_running_reqs", "sglang_num_queue_reqs")
    text = (
        b'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 2\n'
        b'sglang:num_running_reqs{dp_rank="1",tp_rank="0"} 3\n'
        b'sglang:num_running_reqs{dp_rank="1",tp_rank="1"} 3\n'
        b"sglang_num_queue_reqs 4\n"
    )
    load = SgLang()._from_metrics(MetricsPage(pattern, text, _is_first_rank))
    assert (load.running, load.queued, load.kv_use) == (5, 4, None)
