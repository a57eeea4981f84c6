"""Kubeconfig files as kubectl reads them: paths, several files, impersonation, and what is refused by name."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from bridge.errors import ConfigurationError
from bridge.kube import kubeconfig
from bridge.kube.client import KubeClient
from tests.support.options import kube_config

Json = dict[str, Any]


def write(path: Path, user: Any = None, cluster: Any = None, **more: Any) -> str:
    """A kubeconfig with one entry of each, named as the file is; None leaves an entry out."""
    name = path.name
    content: Json = {"apiVersion": "v1", "kind": "Config", "contexts": [], "clusters": [], "users": [], **more}
    if cluster is not None:
        content["clusters"] = [{"name": name, "cluster": {"server": "https://kube:6443", **cluster}}]
    if user is not None:
        content["users"] = [{"name": name, "user": user}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def context(cluster: str, user: str, name: str = "here") -> Json:
    """An entry of `contexts`."""
    return {"name": name, "context": {"cluster": cluster, "user": user}}


def refusal(*files: str) -> str:
    """What reading them says."""
    with pytest.raises(ConfigurationError) as caught:
        kubeconfig.read(files)
    return str(caught.value)


def test_relative_paths_belong_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster and user in two files of two folders, and we in a third."""
    monkeypatch.chdir(tmp_path)
    cluster = write(tmp_path / "a" / "cluster", cluster={"certificate-authority": "ca.crt"})
    user = {
        "client-certificate": "mine.crt", "client-key": "../keys/mine.key", "tokenFile": "token",
        "exec": {"command": "./login", "apiVersion": "v1"},
    }  # fmt: skip
    users = write(tmp_path / "b" / "user", user, contexts=[context("cluster", "user")], **{"current-context": "here"})
    found = kubeconfig.read([cluster, users])
    assert found.cluster["certificate-authority"] == f"{tmp_path}/a/ca.crt"
    assert (found.cluster_file, found.user_file) == (cluster, users)
    assert {key: found.user[key] for key in ("client-certificate", "client-key", "tokenFile")} == {
        "client-certificate": f"{tmp_path}/b/mine.crt",
        "client-key": f"{tmp_path}/keys/mine.key",
        "tokenFile": f"{tmp_path}/b/token",
    }
    assert found.user["exec"]["command"] == f"{tmp_path}/b/login"


def test_a_bare_command_and_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    """A command without a slash is looked up in PATH, as kubectl does."""
    user = {"exec": {"command": "login", "apiVersion": "v1"}, "tokenFile": "/etc/token"}
    path = write(tmp_path / "x", user, {}, contexts=[context("x", "x")], **{"current-context": "here"})
    found = kubeconfig.read([path]).user
    assert (found["exec"]["command"], found["tokenFile"]) == ("login", "/etc/token")


def test_the_first_file_wins_for_entries_and_the_current_context(tmp_path: Path) -> None:
    """Entry by entry, whole; an empty current-context decides nothing."""
    first = write(tmp_path / "a" / "x", {"token": "first"}, None, **{"current-context": ""})
    second = write(
        tmp_path / "b" / "x", {"token": "second", "as": "somebody"}, {},
        contexts=[context("x", "x", "one"), context("x", "x", "two")], **{"current-context": "one"},
    )  # fmt: skip
    third = write(tmp_path / "c" / "x", None, {"server": "https://other"}, **{"current-context": "two"})
    found = kubeconfig.read([first, second, third])
    assert (found.name, found.user, found.cluster["server"]) == ("one", {"token": "first"}, "https://kube:6443")
    assert kubeconfig.read([first, second, third], "two").name == "two"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"token": "t", "as-scopes": ["x"]}, "has as-scopes, which the bridge does not know"),
        ({"client_certificate": "x"}, "has client_certificate, which the bridge does not know"),
        ({"as-groups": ["admins"]}, "has as-groups without as"),
        ({"as": "jo", "as-groups": "admins"}, "as-groups is no list"),
        ({"as": "jo", "as-user-extra": {"scopes": "view"}}, "as-user-extra is no mapping of lists"),
        ({"token": "t", "username": "u"}, "has a token and a username"),
        ({"client-certificate": "c"}, "client-key is missing"),
        ({"client-key-data": "k"}, "client-certificate is missing"),
        ({"exec": {"command": "x"}}, "exec has no apiVersion"),
        ({"exec": "x"}, "exec has no command and no apiVersion"),
        ({"auth-provider": {"name": "azure"}}, "auth-provider azure is not supported; use an exec plugin"),
        ({"auth-provider": {"name": "gcp"}}, "gcp is not supported; use an exec plugin (gke-gcloud-auth-plugin)"),
        ({"client-key-data": "LS0tLS1CRUdJT", "client-certificate-data": "LS0t"}, "client-key-data is no whole base64"),
        ({"auth-provider": {"name": "oidc"}, "exec": {"command": "x", "apiVersion": "v1"}}, "auth-provider and exec"),
    ],
)
def test_what_would_make_us_another_user_is_refused_by_name(tmp_path: Path, user: Json, words: str) -> None:
    """With the file, and without the values: they may be secrets."""
    path = write(tmp_path / "x", user, {}, contexts=[context("x", "x")], **{"current-context": "here"})
    said = refusal(path)
    assert said.startswith(f'kubeconfig {path}: user "x"')
    assert words in said


def test_a_torn_ca_and_a_directory_in_place_of_a_file_are_refused_by_name(tmp_path: Path) -> None:
    """A certificate that was copied in part; what a container engine makes of a mounted file that is not there."""
    torn = {"certificate-authority-data": "LS0tLS1CRUdJT"}
    path = write(tmp_path / "x", {}, torn, contexts=[context("x", "x")], **{"current-context": "here"})
    assert refusal(path) == (
        f'kubeconfig {path}: cluster "x": certificate-authority-data is no whole base64: copy it again'
    )
    with pytest.raises(ConfigurationError, match="is a directory: name the file in it"):
        kubeconfig.files_of(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("users: 7", "users is no list"),
        ("users: [7]", "an entry of users is not"),
        ("users: [{name: x, user: 7}]", "an entry of users is not"),
        ("clusters: [{cluster: {}}]", "an entry of clusters is not"),
        ("contexts: [{name: a, context: {}}]\ncurrent-context: a", "names no cluster"),
        ("", "is empty"),
        ("[]", "is no mapping"),
    ],
)
def test_a_kubeconfig_of_another_form_is_refused_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    """Never a traceback, never another file's name."""
    path = tmp_path / "x"
    path.write_text(text)
    said = refusal(str(path))
    assert str(path) in said
    assert words in said


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hunter2: [{", ":4:19: not valid YAML: mapping values are not allowed here"),
        ("[hunter2", ":5:1: not valid YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
        ("*hunter2", ":4:12: not valid YAML: found undefined alias '...'"),
        ("!hunter2 x", ":4:12: not valid YAML: could not determine a constructor for the tag '...'"),
        ("!hunter'2 x", ":4:12: not valid YAML: could not determine a constructor for the tag '...'"),
        ("!!int hunter2", " cannot be read: invalid literal for int() with base 10: '...'"),
        ("!!bool hunter2", " cannot be read: '...'"),
        ("!!timestamp hunter2", " cannot be read: "),
        ("\x07hunter2", " cannot be read: unacceptable character #x0007"),
    ],
)
def test_a_kubeconfig_that_is_no_yaml_is_refused_with_the_place_and_without_its_text(
    tmp_path: Path, token: str, words: str
) -> None:
    """The line that is wrong may be the token's."""
    path = tmp_path / "x"
    path.write_text(f"users:\n- name: a\n  user:\n    token: {token}\n")
    with pytest.raises(ConfigurationError) as caught:
        kubeconfig.read([str(path)])
    assert f"kubeconfig {path}{words}" in str(caught.value)
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


def test_a_kubeconfig_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """With the place of the byte."""
    path = tmp_path / "x"
    path.write_bytes(b"users: \xff\n")
    assert refusal(str(path)).startswith(f"kubeconfig {path} cannot be read: ")


def test_impersonation_becomes_headers(tmp_path: Path) -> None:
    """One header per group and value; keys as client-go escapes them."""
    user = {
        "token": "t", "as": "jörg", "as-uid": "42", "as-groups": ["one", "two"],
        "as-user-extra": {"example.org/scope": ["view", "edit"], "Reason%": ["x"]},
    }  # fmt: skip
    path = write(tmp_path / "x", user, {}, contexts=[context("x", "x")], **{"current-context": "here"})
    assert kubeconfig.read([path]).impersonation == (
        ("Impersonate-User", "jörg"),
        ("Impersonate-Uid", "42"),
        ("Impersonate-Group", "one"),
        ("Impersonate-Group", "two"),
        ("Impersonate-Extra-Reason%25", "x"),
        ("Impersonate-Extra-example.org%2Fscope", "view"),
        ("Impersonate-Extra-example.org%2Fscope", "edit"),
    )
    assert "'t'" not in repr(kubeconfig.read([path]))


def test_a_namespace_can_be_asked_for_without_running_the_plugin(tmp_path: Path) -> None:
    """It stands in the file; a login that hangs must not stand in the way."""
    from bridge.kube.access import namespace_of

    entry = {"name": "here", "context": {"cluster": "x", "user": "x", "namespace": "storage"}}
    user = {"exec": {"command": "/no/such/login", "apiVersion": "v1"}}
    path = write(tmp_path / "x", user, {}, contexts=[entry], **{"current-context": "here"})
    assert namespace_of(kube_config(kubeconfig=path)) == "storage"
    assert namespace_of(kube_config(kubeconfig=path, namespace_default="other")) == "other"


@pytest.mark.parametrize("missing", ["ca.crt", "mine.crt", "mine.key"])
def test_a_file_that_is_not_there_is_named_in_full_with_its_kubeconfig(tmp_path: Path, missing: str) -> None:
    """ "File does not exist: ca.crt" does not help a user who has three kubeconfigs."""
    authority = trustme.CA()
    mine = authority.issue_cert("bridge@example.org")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "mine.crt"))
    mine.private_key_pem.write_to_path(str(tmp_path / "mine.key"))
    user, cluster = {"client-certificate": "mine.crt", "client-key": "mine.key"}, {"certificate-authority": "ca.crt"}
    path = write(tmp_path / "x", user, cluster, contexts=[context("x", "x")], **{"current-context": "here"})
    KubeClient(kube_config(kubeconfig=path)).close()
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigurationError) as caught:
        KubeClient(kube_config(kubeconfig=path))
    assert f" {tmp_path}/{missing} (kubeconfig {path}): No such file or directory" in str(caught.value)


@pytest.mark.parametrize("user", [{"token": "s3cr3t"}, {"username": "u", "password": "s3cr3t"}])
def test_credentials_are_not_sent_unencrypted_to_another_machine(tmp_path: Path, user: Json) -> None:
    """kubectl leaves them out there; loopback (kubectl proxy) is another thing."""
    entry = {"contexts": [context("x", "x")], "current-context": "here"}
    path = write(tmp_path / "x", user, {"server": "http://kube.example.org:8080"}, **entry)
    with pytest.raises(ConfigurationError, match="would be sent unencrypted") as caught:
        KubeClient(kube_config(kubeconfig=path))
    assert "http://kube.example.org:8080" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    for server, whose in (("http://127.0.0.1:8080", user), ("http://kube.example.org:8080", {})):
        KubeClient(kube_config(kubeconfig=write(tmp_path / "x", whose, {"server": server}, **entry))).close()


def test_json_is_yaml(tmp_path: Path) -> None:
    """Some tools write kubeconfigs as JSON."""
    path = write(tmp_path / "x", {}, {}, contexts=[context("x", "x")], **{"current-context": "here"})
    Path(path).write_text(json.dumps(yaml.safe_load(Path(path).read_text())))
    assert kubeconfig.read([path]).name == "here"
