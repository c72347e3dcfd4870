"""Cards, collections and pages of the tests' Hub."""

from __future__ import annotations

import pytest
from huggingface_hub import (
    HfApi,
    get_session,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
)

from tests.hub.common import CARD, AsUser, status
from tests.hub.server import HubServer


@pytest.mark.parametrize(
    ("kind", "metadata", "message"),
    [
        ("model", "license: my-own", '"license" must be one of'),
        ("model", "license: other\nlicense_name: My Own", "license_name"),
        ("model", "base_model: /work/models/base", "base_model"),
        ("model", "base_model: [ann/m, 7]", "base_model"),
        ("model", "base_model_relation: child", "base_model_relation"),
        ("model", "tags: one", '"tags" must be an array'),
        ("model", "model-index: [{results: []}]", "model-index"),
        ("model", "a: [", "Invalid YAML"),
        ("model", "- a", "mapping"),
        ("dataset", "configs: [{config_name: a}, {config_name: a}]", "twice"),
        ("dataset", "configs: [{data_files: '*.parquet'}]", "config_name"),
        ("dataset", "configs: [{config_name: a, data_files: [{path: x}]}]", "data_files"),
        ("model", "tags: ['" + "x" * 2**20 + "']", "too large"),
    ],
)
def test_bad_card_stops_the_commit(
    hub: HubServer, ann: HfApi, kind: str, metadata: str, message: str
) -> None:
    ann.create_repo("ann/r", repo_type=kind)
    card = f"---\n{metadata}\n---\n# Card\n".encode()
    with pytest.raises(ValueError, match=message):
        ann.upload_file(
            path_or_fileobj=card, path_in_repo="README.md", repo_id="ann/r", repo_type=kind
        )
    assert not hub.log.find("preupload")


@pytest.mark.filterwarnings("ignore:Warnings while validating")
def test_good_cards_pass(hub: HubServer, ann: HfApi) -> None:
    good = (
        "---\nconfigs:\n- config_name: elites\n  default: true\n  data_files:\n"
        "  - {split: train, path: 'elites/*.parquet'}\n---\n"
    )
    for kind, card in (("model", CARD), ("dataset", good), ("model", "# bare\n")):
        ann.create_repo("ann/r", repo_type=kind, exist_ok=True)
        ann.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="ann/r", repo_type=kind
        )
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"content": "# bare"})
    assert answer.status_code == 200
    assert "missing yaml" in answer.json()["warnings"][0]["message"]


def test_collections(hub: HubServer, ann: HfApi, as_user: AsUser) -> None:
    hub.put_model("ann/m", {"a": "a"})
    hub.put_dataset("ann/m", {"a": "a"})
    made = ann.create_collection("A run: elites!", description="d", private=True)
    assert made.slug.startswith("ann/a-run-elites-")
    assert ann.create_collection("A run: elites!", exists_ok=True).slug == made.slug
    with pytest.raises(HfHubHTTPError) as error:
        ann.create_collection("A run: elites!")
    assert status(error) == 409
    ann.add_collection_item(made.slug, "ann/m", "model", note="cell 3")
    ann.add_collection_item(made.slug, "ann/m", "dataset")
    ann.add_collection_item(made.slug, "ann/m", "model", exists_ok=True)
    with pytest.raises(HfHubHTTPError) as error:
        ann.add_collection_item(made.slug, "ann/m", "model")
    assert status(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        ann.add_collection_item(made.slug, "ann/none", "model")
    assert status(error) == 404
    found = ann.get_collection(made.slug)
    items = [(item.item_id, item.item_type, item.note) for item in found.items]
    assert items == [("ann/m", "model", "cell 3"), ("ann/m", "dataset", None)]
    assert [one.slug for one in ann.list_collections(owner="ann")] == [made.slug]
    assert [one.slug for one in ann.list_collections(item="models/ann/m")] == [made.slug]
    assert list(as_user("bob").list_collections(owner="ann")) == []
    with pytest.raises(HfHubHTTPError) as error:
        as_user("bob").get_collection(made.slug)
    assert status(error) == 404
    ann.update_collection_metadata(made.slug, title="Other", private=False)
    with pytest.raises(HfHubHTTPError) as error:
        as_user("bob").add_collection_item(made.slug, "ann/m", "model")
    assert status(error) == 403
    ann.update_collection_item(made.slug, found.items[1].item_object_id, note="n", position=0)
    ann.delete_collection_item(made.slug, found.items[0].item_object_id)
    assert hub.collections() == {made.slug: [("datasets/ann/m", "n")]}
    ann.delete_repo("ann/m", repo_type="dataset")
    assert hub.collections() == {made.slug: []}
    ann.delete_collection(made.slug)
    ann.delete_collection(made.slug, missing_ok=True)
    assert hub.collections() == {}


def test_pages_show_card_and_items(hub: HubServer, ann: HfApi) -> None:
    card = CARD + "\n![map](figures/map.png) <script>alert(1)</script>\n\n|a|b|\n|-|-|\n|1|2|\n"
    hub.put_model("ann/m", {"README.md": card, "figures/map.png": b"png"})
    slug = ann.create_collection("run").slug
    ann.add_collection_item(slug, "ann/m", "model", note="best <average>")
    page = get_session().get(f"{hub.url}/ann/m")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'none'" in page.headers["Content-Security-Policy"]
    assert 'src="/ann/m/resolve/main/figures/map.png"' in page.text
    assert "<td>2</td>" in page.text
    assert "license: apache-2.0" not in page.text
    listed = get_session().get(f"{hub.url}/collections/{slug}").text
    assert 'href="/ann/m"' in listed
    assert "best &lt;average&gt;" in listed
    hub.put_model("ann/m", {}, private=True)
    assert get_session().get(f"{hub.url}/ann/m").status_code == 401
