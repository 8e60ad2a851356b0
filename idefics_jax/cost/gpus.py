"""The NVIDIA GPUs that programs are compiled for on machines without one."""

import math
from typing import Any

import jax

from idefics_jax.parallel.hardware import GPUS, Gpu

#: XLA's numbers of the types that its cost model has rates for (`PrimitiveType` in xla_data.proto): numbers in vector
#: units with how many units a core has and their operations per cycle; and in matrix units, by the rate of bfloat16.
_VECTOR_UNITS = {4: (64, 1), 8: (64, 1), 10: (128, 2), 11: (128, 1), 12: (64, 1), 16: (128, 2)}
_MATRIX_UNITS = {2: 2.0, 6: 2.0, 10: 1.0, 11: 0.5, 16: 1.0}
_EIGHT_BIT_FLOATS = dict.fromkeys((19, 20, 23, 24, 25, 28, 29), 2.0)  # since Hopper


#: What programs for a GPU that is absent are compiled with besides: nothing can try out tiles there, and those that
#: Triton takes by default make its products some 20 times slower. With a GPU, XLA measures what is best.
UNTUNED = {"xla_gpu_enable_triton_gemm": False}


def gpu_devices(name: str, count: int, hosts: int = 1) -> list[Any]:
    """Devices of so many hosts with `count` GPUs each, as XLA's compiler knows them; needs the extra cuda but no GPU.

    The process must not look for GPUs: `JAX_PLATFORMS=cpu`.
    """
    from jax.experimental import topologies  # only plans need it

    # Never kept: JAX could not read programs for absent devices back.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    topology = f"1x{hosts}x{count}"  # slices, hosts, GPUs of a host
    found = topologies.get_topology_desc(platform="cuda", topology=topology, target_config=target_config(GPUS[name]))
    return list(found.devices)


def target_config(gpu: Gpu) -> str:
    """XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    modern = gpu.capability >= 9
    rates = _MATRIX_UNITS | (_EIGHT_BIT_FLOATS if modern else {})
    vectors = "".join(_rate(dtype, gpu.clock, *units) for dtype, units in _VECTOR_UNITS.items())
    matrices = "".join(_rate(dtype, gpu.matrix_clock, 4, int(gpu.matrix_rate * rate)) for dtype, rate in rates.items())
    shared = 233472 if modern else 167936
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared - 1024}
  core_count: {gpu.cores} fpus_per_core: {128 if modern else 64} clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.hbm_bytes} memory_bandwidth: {gpu.hbm_bandwidth} l2_cache_size: {gpu.cache_bytes}
  cuda_compute_capability {{
    major: {gpu.capability} feature_extension: {"ACCELERATED_FEATURES" if modern else "NONE"}
  }}
  scalar_unit_description {{ {vectors}}}
  matrix_unit_description {{ {matrices}}}
  device_vendor: "NVIDIA Corporation" name: "{gpu.kind}" device_address_bits: 64 ecc_enabled: true
  platform_version: "Compute Capability {gpu.capability}.0{"a" if modern else ""}" pcie_bandwidth: 34359738368
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0" cub_version: "3.1.2"
  device_interconnect_info {{ active_links: {gpu.links} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.kind}"
"""


def _rate(dtype: int, clock: float, units: int, operations: int) -> str:
    value = f"clock_rate_ghz: {clock} units_per_core: {units} ops_per_clock: {operations}"
    return f"rate_infos {{ key: {dtype} value {{ {value} }} }} "
