"""The step of a deletion: one point after the other leaves the repository; its child takes over what it needs."""

from sendense.coordinator.context import Answer, Context, Done, Run
from sendense.repository import merge
from sendense.requests import DeleteRequest


def delete(context: Context, run: Run) -> Answer:
    """Delete the points that are still there."""
    request, repository = run.view.request, context.repository
    assert isinstance(request, DeleteRequest)
    merge.recover(repository, request.vm.uuid, run.beat)
    for name in request.points:
        point = next((point for point in repository.points(request.vm.uuid) if point.id == name), None)
        if point:
            context.jobs.event(run.view.id, f"deleting {name}")
            merge.delete(repository, point, merge=request.merge, beat=run.beat)
    return Done(run.work)
