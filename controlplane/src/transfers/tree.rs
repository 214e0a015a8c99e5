//! What is asked of trees: checked when it is asked, told to the source.

use skein_filemesh::engine::tree::{Filter, Pattern};
use skein_wire::signal::v1::{LinkPolicy, TreeRules};

use super::TransferError;
use crate::api::types::{TreeLinks, TreeRequest};

/// Bytes of all patterns together, which travel in one signed order.
const PATTERNS_BYTES_MAX: usize = 64 * 1024;

/// Refuses patterns that no source could use.
pub fn check(tree: &TreeRequest) -> Result<(), TransferError> {
    let bytes: usize = tree.matching.iter().chain(&tree.exclude).map(String::len).sum();
    if bytes > PATTERNS_BYTES_MAX {
        return Err(TransferError::Invalid(format!(
            "patterns must have at most {PATTERNS_BYTES_MAX} bytes together"
        )));
    }
    let matching: Vec<_> = tree.matching.iter().cloned().map(Pattern::Regex).collect();
    let exclude: Vec<_> = tree.exclude.iter().cloned().map(Pattern::Glob).collect();
    let checked = Filter::new(&matching, &exclude);
    checked.map(drop).map_err(|error| TransferError::Invalid(error.to_string()))
}

/// As the source is told; `name` is a new one for what it takes, if it is not empty.
pub fn rules(tree: &TreeRequest, name: &str) -> TreeRules {
    let links = match tree.links {
        TreeLinks::Keep => LinkPolicy::Keep,
        TreeLinks::Follow => LinkPolicy::Follow,
        TreeLinks::Skip => LinkPolicy::Skip,
    };
    TreeRules {
        matching: tree.matching.clone(),
        exclude: tree.exclude.clone(),
        links: links.into(),
        plain_modes: tree.plain_modes,
        owner_names: tree.owners_by_name,
        hard_links: !tree.copy_hard_links,
        name: name.to_owned(),
        // A file that is asked for like this cannot travel as it is.
        always: tree.refuse_existing || tree.times_of_arrival,
    }
}
