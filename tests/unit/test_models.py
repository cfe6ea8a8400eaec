"""What jobs are made of."""

from sendense.models import HUB_SITE, JobSpec


def test_verification_stays_near_what_it_reads() -> None:
    """What is stored at the hub is read back there, and not through a site's tunnel; all else where it was written."""
    copy = JobSpec(id="a", kind="copy", site="oslo", name="disk", source="nbd://source/", target="hub:disk-1")
    verification = copy.verification()
    assert (verification.site, verification.source, verification.target) == (HUB_SITE, "hub:disk-1", "")
    assert (verification.id, verification.of, verification.kind) == ("a-verify", "a", "verify")
    assert copy.model_copy(update={"target": "nbd://elsewhere/"}).verification().site == "oslo"
