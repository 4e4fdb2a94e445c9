"""Commands through the published client where its own tests stop: followed, left, found again, fed and killed.

Run by published.py, which sets the client's environment.
"""

import asyncio
import os
import time

import pytest
from nullspace import AsyncSandbox, Sandbox

BASE_URL = os.environ["NULLSPACE_API_URL"]
API_KEY = os.environ["NULLSPACE_API_KEY"]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox.create(api_key=API_KEY, base_url=BASE_URL) as made:
        yield made


def soon(check, what):
    until = time.monotonic() + 30
    while not check():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def test_streamed_output_is_whole_and_in_order(sandbox):
    out, err = [], []
    line = "for i in $(seq 1 20000); do echo line-$i; done; echo fault >&2; exit 3"
    result = sandbox.commands.run(line, shell=True, timeout=120, on_stdout=out.append, on_stderr=err.append)
    assert result.exit_code == 3
    assert "".join(out) == result.stdout == "".join(f"line-{i}\n" for i in range(1, 20001))
    assert "".join(err) == result.stderr == "fault\n"


def test_characters_are_whole_however_they_are_written(sandbox):
    line = r"printf 'a\342'; sleep 0.3; printf '\202\254\n'"
    pieces = []
    sandbox.commands.run(line, shell=True, on_stdout=pieces.append)
    assert "".join(pieces) == "a\u20ac\n"


def test_a_slow_callback_loses_nothing(sandbox):
    got = []

    def slow(piece):
        got.append(len(piece))
        if len(got) < 40:
            time.sleep(0.05)

    result = sandbox.commands.run("head -c 10000000 /dev/zero | tr '\\0' x", shell=True, timeout=120, on_stdout=slow)
    assert (result.exit_code, sum(got), len(result.stdout)) == (0, 10_000_000, 10_000_000)


def test_a_background_command_is_followed_fed_left_and_found_again(sandbox):
    heard = []
    line = "while read -r word; do echo got-$word; done"
    handle = sandbox.commands.run(line, shell=True, background=True, timeout=600, on_stdout=heard.append)
    sandbox.commands.send_stdin(handle.pid, "one\n")
    soon(lambda: "got-one\n" in "".join(heard), "stdin does not arrive")
    handle.disconnect()
    sandbox.commands.send_stdin(handle.pid, "two\n")
    again = []
    found = sandbox.commands.connect(handle.pid, on_stdout=again.append)
    soon(lambda: "".join(again) == "got-one\ngot-two\n", "what was written meanwhile is not there")
    assert any(process.pid == handle.pid and process.running for process in sandbox.commands.list())
    found.kill()
    assert found.wait(timeout=30).exit_code == 137


def test_a_background_command_ends_by_itself(sandbox):
    heard = []
    handle = sandbox.commands.run("sleep 0.5; echo done; exit 4", shell=True, background=True, on_stdout=heard.append)
    result = handle.wait(timeout=30)
    assert (result.exit_code, result.stdout, "".join(heard)) == (4, "done\n", "done\n")


def test_without_callbacks_stdin_is_open_too(sandbox):
    handle = sandbox.commands.run("cat", background=True)
    sandbox.commands.send_stdin(handle.pid, "through\n")
    soon(lambda: handle.get_logs().stdout == "through\n", "cat does not answer")
    handle.kill()


def test_a_command_whose_time_is_over_is_an_error(sandbox):
    with pytest.raises(RuntimeError, match="did not end in its time"):
        sandbox.commands.run("sleep 60", shell=True, timeout=1, on_stdout=print)
    with pytest.raises(RuntimeError, match="no-such-program"):
        sandbox.commands.run("no-such-program", on_stdout=print)


def test_the_asynchronous_client_does_the_same():
    async def run():
        made = await AsyncSandbox.create(api_key=API_KEY, base_url=BASE_URL)
        try:
            out = []
            result = await made.commands.run("echo one; exit 5", shell=True, on_stdout=out.append)
            assert (result.exit_code, out) == (5, ["one\n"])
            handle = await made.commands.run("sleep 60", shell=True, background=True, on_stdout=out.append)
            found = await made.commands.connect(handle.pid, on_stdout=out.append)
            await handle.kill()
            assert (await found.wait(timeout=30)).exit_code == 137
        finally:
            await made.kill()

    asyncio.run(run())
