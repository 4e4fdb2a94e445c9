"""Warm pools through the published client, whose own tests of them have no service.

Run by published.py, which sets the client's environment.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from nullspace import Sandbox, TemplateWarmPool, TemplateWarmPoolState, WarmPoolCheckoutMode
from nullspace.errors import SandboxError

WHERE = {"api_key": os.environ["NULLSPACE_API_KEY"], "base_url": os.environ["NULLSPACE_API_URL"]}
# Creates from a pool that refills meanwhile. `make test-long` makes a hundred from a pool of ten.
CREATES, READY = (100, 10) if os.environ.get("NULLSPACE_TEST_LONG") else (6, 2)
IDENTITY = "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -A n -t x1"


@pytest.fixture(scope="module")
def pool():
    made = TemplateWarmPool.create("base", name="live", min_ready=READY, max_ready=READY, vcpus=1, memory_mb=512,
                                   labels={"role": "test"}, **WHERE)
    try:
        made.wait_until_ready(timeout_secs=120, interval_secs=0.2)
        yield made
    finally:
        made.delete()
        made.close()


def test_a_pool_is_found_by_its_labels_and_shows_its_template(pool):
    assert [found.id for found in TemplateWarmPool.list(label="role=test", state=TemplateWarmPoolState.ENABLED, **WHERE)] == [pool.id]
    assert TemplateWarmPool.list(label="role=other", **WHERE) == []
    info = TemplateWarmPool.get(pool.id, **WHERE)._info
    assert info.resolved_template and info.resolved_template_build_id and info.runtime_artifact_id
    assert info.rollout_status.current_counts.ready >= READY
    assert info.vcpus > 0 and info.memory_mb > 0


def test_no_identity_comes_twice_while_the_pool_refills(pool):
    def one(_):
        with Sandbox.create("base", warm_pool=pool.id, warm_pool_mode="require", warm_pool_wait_ms=60_000, **WHERE) as made:
            assert made.get_info().warm_pool_checkout.hit
            return made.commands.run(IDENTITY, shell=True).stdout.split("\n")[:5]

    with ThreadPoolExecutor(max_workers=2) as two:
        lines = [line for lines in two.map(one, range(CREATES)) for line in lines]
    assert len(lines) == 5 * CREATES and all(lines)
    assert len(set(lines)) == len(lines), sorted(lines)


def test_modes_of_a_checkout(pool):
    pool.drain()
    until = time.monotonic() + 60
    while pool.get_info().status.ready:
        assert time.monotonic() < until, "it does not drain"
        time.sleep(0.1)
    with pytest.raises(SandboxError) as refused:
        Sandbox.create("base", warm_pool=pool.id, warm_pool_mode=WarmPoolCheckoutMode.REQUIRE, **WHERE)
    assert refused.value.code == "warm_pool_unavailable"
    with Sandbox.create("base", warm_pool=pool.id, warm_pool_mode="prefer", **WHERE) as made:
        assert (made.get_info().warm_pool_checkout.source.value, made.get_info().warm_pool_checkout.hit) == ("cold_create", False)
        assert made.commands.run("echo alive", shell=True).stdout == "alive\n"
    assert pool.enable().state == TemplateWarmPoolState.ENABLED
    pool.wait_until_ready(timeout_secs=120, interval_secs=0.2)
