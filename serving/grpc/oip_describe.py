"""What a hosted model is and has done, as messages of the Open Inference Protocol."""

from __future__ import annotations

from stepwell.serving.grpc import oip_predict
from stepwell.serving.grpc.oip_converters import INPUTS, OUTPUTS
from stepwell.serving.grpc.tensors import TensorSpec
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.pb import model_config_pb2 as config_pb
from stepwell.serving.served_model import VERSION, ServedModel
from stepwell.serving.statistics import Duration

_CONFIG_TYPES = {"BYTES": config_pb.TYPE_STRING, "INT64": config_pb.TYPE_INT64, "FP32": config_pb.TYPE_FP32}


def _specs(served: ServedModel) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs; a model without tokenizer has no text."""
    if served.predicts:
        return oip_predict.inputs_of(served.hosted), oip_predict.outputs_of(served.hosted)
    keep = [spec for spec in INPUTS.values() if served.has_text or spec.name != "text"]
    return keep, [spec for spec in OUTPUTS.values() if served.has_text or spec.name != "text"]


def model_metadata(served: ServedModel) -> pb.ModelMetadataResponse:
    """Names, types and shapes of a model's tensors."""
    response = pb.ModelMetadataResponse(name=served.name, versions=[VERSION], platform=served.platform)
    for target, specs in zip((response.inputs, response.outputs), _specs(served), strict=True):
        for spec in specs:
            target.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def model_config(served: ServedModel) -> pb.ModelConfigResponse:
    """Triton's model configuration. Decoupled, where a request of a stream has as many responses as it has chunks."""
    config = config_pb.ModelConfig(name=served.name, platform=served.platform, max_batch_size=0)
    inputs, outputs = _specs(served)
    for spec in inputs:
        config.input.add(name=spec.name, data_type=_CONFIG_TYPES[spec.datatype], dims=spec.shape, optional=True)
    for spec in outputs:
        config.output.add(name=spec.name, data_type=_CONFIG_TYPES[spec.datatype], dims=spec.shape)
    config.model_transaction_policy.decoupled = not served.predicts
    return pb.ModelConfigResponse(config=config)


def model_statistics(served: ServedModel) -> pb.ModelStatistics:
    """Counters since the model was configured."""
    stats = served.statistics
    return pb.ModelStatistics(
        name=served.name,
        version=VERSION,
        last_inference=stats.last_inference_ms,
        inference_count=stats.success.count,
        execution_count=stats.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute_input),
            compute_infer=_duration(stats.compute_infer),
        ),
        memory_usage=[pb.MemoryUsage(type="CPU", byte_size=size) for size in [served.cache_bytes] if size],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def index_entry(served: ServedModel) -> pb.RepositoryIndexResponse.ModelIndex:
    """One line of the repository's index."""
    return pb.RepositoryIndexResponse.ModelIndex(
        name=served.name, version=VERSION, state=served.state.value, reason=served.reason
    )
