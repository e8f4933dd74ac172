"""Table 4 of the paper: millions of parameters, billions of MACs and FLOPs (2 x MACs), milliseconds on its GPU."""

TABLE_4 = {
    "no attention": {"parameters_m": 43.93, "macs_g": 17.57, "flops_g": 35.15, "latency_ms": 6.83},
    "GCA": {"parameters_m": 44.98, "macs_g": 17.80, "flops_g": 35.60, "latency_ms": 7.04},
    "overhead": {"parameters_m": 1.05, "macs_g": 0.23, "flops_g": 0.45, "latency_ms": 0.21},
}
