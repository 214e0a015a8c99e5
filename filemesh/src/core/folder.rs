//! The folder of an order, as it reads on one host.
//!
//! One signed order goes to every target, so that a folder which differs from host to host stands in
//! it with placeholders: `/srv/{agent}/data`. Control checks the text, each agent puts its own values
//! in. A value must be one plain word, so that a host name made up by somebody cannot lead anywhere
//! else: `/` or `..` in it ends the transfer on that host before a folder is opened.

/// Longest value that is put in: a component of a path.
pub const VALUE_BYTES_MAX: usize = 255;

/// What a host is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostNames<'a> {
    /// `{agent}`: its agent id.
    pub agent: &'a str,
    /// `{hostname}`: its own host name.
    pub hostname: &'a str,
}

/// Why a folder cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FolderError {
    /// Something in braces that means nothing.
    #[error("{{{0}}} in the folder is none of {{agent}}, {{hostname}}; write {{{{ for a brace")]
    Unknown(String),
    /// A brace that begins or ends nothing.
    #[error(
        "a single brace in the folder; write {{{{ or }}}} for one, {{agent}} for an agent's id"
    )]
    Brace,
    /// A value that is no plain word.
    #[error(
        "{placeholder} is {value:?} here; only letters, digits and .:_- may stand in a folder, \
         a letter or digit first"
    )]
    Value {
        /// Which.
        placeholder: &'static str,
        /// What this host puts there.
        value: String,
    },
}

/// Checks the placeholders of a folder. Whether it is a legal path is asked elsewhere.
pub fn check(folder: &str) -> Result<(), FolderError> {
    let names = HostNames { agent: "agent", hostname: "host" };
    expand(folder, &names).map(drop)
}

/// The folder on the host of these names.
pub fn expand(folder: &str, names: &HostNames<'_>) -> Result<String, FolderError> {
    let mut path = String::with_capacity(folder.len());
    let mut rest = folder;
    while let Some(at) = rest.find(['{', '}']) {
        let (plain, braced) = rest.split_at(at);
        path.push_str(plain);
        if let Some(after) = braced.strip_prefix("{{") {
            path.push('{');
            rest = after;
        } else if let Some(after) = braced.strip_prefix("}}") {
            path.push('}');
            rest = after;
        } else {
            let inside = braced.strip_prefix('{').and_then(|braced| braced.split_once('}'));
            let (word, after) = inside.ok_or(FolderError::Brace)?;
            path.push_str(value(word, names)?);
            rest = after;
        }
    }
    path.push_str(rest);
    Ok(path)
}

fn value<'a>(word: &str, names: &HostNames<'a>) -> Result<&'a str, FolderError> {
    let (placeholder, value) = match word {
        "agent" => ("{agent}", names.agent),
        "hostname" => ("{hostname}", names.hostname),
        other => return Err(FolderError::Unknown(other.to_owned())),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte);
    let begins_well = value.starts_with(|first: char| first.is_ascii_alphanumeric());
    if !begins_well || value.len() > VALUE_BYTES_MAX || !value.bytes().all(is_plain) {
        return Err(FolderError::Value { placeholder, value: value.to_owned() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: HostNames<'_> = HostNames { agent: "0:10.0.0.1", hostname: "web-1.example" };

    #[test]
    fn every_host_has_its_own_folder() {
        let expanded = |folder| expand(folder, &NAMES).unwrap();
        assert_eq!(expanded("/srv/{agent}/data"), "/srv/0:10.0.0.1/data");
        assert_eq!(expanded("/srv/a-{hostname}.{agent}"), "/srv/a-web-1.example.0:10.0.0.1");
        assert_eq!(expanded("/srv/plain"), "/srv/plain");
        assert_eq!(expanded("/srv/{{agent}}/}}{{"), "/srv/{agent}/}{");
    }

    #[test]
    fn other_braces_are_refused_before_anything_is_sent() {
        for folder in ["/a/{", "/a/}", "/a/{agent", "/a/agent}", "/a/{{agent}"] {
            assert_eq!(check(folder), Err(FolderError::Brace), "{folder}");
        }
        for folder in ["/a/{}", "/a/{ip}", "/a/{Agent}", "/a/{agent }", "/a/{{{x}"] {
            assert!(matches!(check(folder), Err(FolderError::Unknown(_))), "{folder}");
        }
    }

    #[test]
    fn a_hostile_name_leads_nowhere() {
        let hostile = ["", ".", "..", "../x", "a/b", "/", "a\0", "a\n", "-a", ".a", "é", "{agent}"];
        let long = "a".repeat(VALUE_BYTES_MAX + 1);
        for name in hostile.into_iter().chain([long.as_str()]) {
            let names = HostNames { hostname: name, ..NAMES };
            let expanded = expand("/srv/{hostname}", &names);
            assert!(matches!(expanded, Err(FolderError::Value { .. })), "{name:?}");
            assert_eq!(expand("/srv/{agent}", &names).unwrap(), "/srv/0:10.0.0.1");
        }
    }
}
