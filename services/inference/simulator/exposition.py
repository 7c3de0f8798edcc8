"""An engine's metrics under vLLM's names, in Prometheus' text format."""

from services.inference.simulator.engine import Engine


def metrics(engine: Engine, adapters: int, started_at: float, now: float) -> bytes:
    """Returns the page.

    Args:
        engine: The engine.
        adapters: How many LoRA adapters are loaded.
        started_at: When the process began, in seconds since 1970.
        now: The same clock now.
    """
    options = engine.options
    labels = f'{{engine="0",model_name="{options.model}"}}'
    is_nan = engine.faults.nan_metrics
    lines: list[str] = []

    def add(name: str, kind: str, value: float, labels: str = labels) -> None:
        lines.append(f"# TYPE {name} {kind}\n{name}{labels} {value:.15g}\n")

    use = engine.cache.use if engine.cache is not None else 0.0
    for name, gauge in (
        ("vllm:num_requests_running", engine.running),
        ("vllm:num_requests_waiting", engine.waiting),
        ("vllm:kv_cache_usage_perc", use),
    ):
        add(name, "gauge", float("nan") if is_nan else gauge)
    for name, counter in (
        ("vllm:prefix_cache_queries_total", engine.looked_up),
        ("vllm:prefix_cache_hits_total", engine.found),
        ("vllm:prompt_tokens_total", engine.prompt_tokens),
        ("vllm:generation_tokens_total", engine.answer_tokens),
        ("vllm:request_success_total", engine.answered),
    ):
        add(name, "counter", counter)
    if engine.cache is not None:
        config = (
            f'{{block_size="{options.block_tokens}",enable_prefix_caching="True",engine="0",'
            f'num_gpu_blocks="{options.blocks}"}}'
        )
        add("vllm:cache_config_info", "gauge", 1.0, config)
    if adapters:
        running = ",".join(name for name in engine.running_models() if name != options.model)
        waiting = ",".join(name for name in engine.waiting_models() if name != options.model)
        lora = (
            f'{{max_lora="{adapters}",running_lora_adapters="{running}",'
            f'waiting_lora_adapters="{waiting}"}}'
        )
        add("vllm:lora_requests_info", "gauge", now, lora)
    add("process_start_time_seconds", "gauge", started_at, "")
    return "".join(lines).encode()
