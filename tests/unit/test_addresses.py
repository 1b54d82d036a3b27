import pytest
from plaudit.addresses import address, bare_host, is_loopback


@pytest.mark.parametrize(
    ("host", "written"),
    [("127.0.0.1", "127.0.0.1:1"), ("::", "[::]:1"), ("[::1]", "[::1]:1"), ("plaudit.example", "plaudit.example:1")],
)
def test_an_ipv6_host_stands_in_brackets_beside_a_port(host, written):
    assert address(host, 1) == written
    assert bare_host(host) == host.strip("[]")


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("unix:/tmp/plaudit.sock", True),
        ("10.0.0.1:50051", False),
        ("plaudit.example:50051", False),
        ("127.0.0.1.example:50051", False),
    ],
)
def test_a_target_on_this_machine_is_known(target, loopback):
    assert is_loopback(target) is loopback
