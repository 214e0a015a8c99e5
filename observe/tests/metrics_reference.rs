//! docs/metrics.md is what the catalogue says. `SKEIN_REWRITE=1` (or `make docs`) rewrites it.

use std::path::Path;

#[test]
fn the_reference_of_metrics_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let expected = skein_observe::reference::markdown();
    if std::env::var_os("SKEIN_REWRITE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/metrics.md is out of date: run `make docs` and commit it");
}
