//! Selectors: how operators say which agents they mean.
//!
//! ```text
//! selector = all-of ( "|" all-of )*          any of them
//! all-of   = term ( "," term )*              all of them; "," binds closer than "|"
//! term     = "all" | "*"
//!          | key "=" value | key "!=" value
//!          | "re:" regular expression over the host name (up to the next "," or "|" outside
//!            brackets; "re!:" negates)
//!          | word                            an agent id, an address or a host name
//!          | cloud ":" address               GSE's form of a host, for example 0:10.0.0.7
//! key      = id | ip | host | region | zone | cloud | state | label.NAME | NAME (a label)
//! ```
//! A value may hold `*` (any characters). Parsing never fails silently: what is not understood is
//! refused with the place and the remedy, because a selector that means more hosts than its author
//! thinks is the most expensive typo there is.

use std::fmt;

use crate::api::types::AgentState;

/// Longest selector.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;
/// Most terms: a list of 4,096 host names fits.
pub const SELECTOR_TERMS_MAX: usize = 4_096;
/// Compiled size of one regular expression.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// What a selector looks at.
pub trait Selectable {
    /// Agent id.
    fn id(&self) -> &str;
    /// Host name.
    fn hostname(&self) -> &str;
    /// Addresses.
    fn ips(&self) -> &[String];
    /// Value of a label.
    fn label(&self, name: &str) -> Option<&str>;
    /// Region.
    fn region(&self) -> &str;
    /// Zone.
    fn zone(&self) -> &str;
    /// Cloud area.
    fn cloud_id(&self) -> i32;
    /// Whether it can be reached.
    fn state(&self) -> AgentState;
}

/// A parsed selector.
#[derive(Clone, Debug)]
pub struct Selector {
    any_of: Vec<Vec<Term>>,
}

#[derive(Clone, Debug)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    All,
    Id(Pattern),
    Ip(Pattern),
    Host(Pattern),
    Label(String, Pattern),
    Region(Pattern),
    Zone(Pattern),
    Cloud(i32),
    State(AgentState),
    Regex(regex::Regex),
    Word(Pattern),
    CloudIp(i32, String),
}

/// A text in which `*` stands for any characters.
#[derive(Clone, Debug)]
struct Pattern(String);

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

/// Why a selector is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector: {0}")]
pub struct SelectorError(String);

fn refuse<T>(why: impl fmt::Display) -> Result<T, SelectorError> {
    Err(SelectorError(why.to_string()))
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return refuse(format_args!("longer than {SELECTOR_BYTES_MAX} bytes; use a label"));
        }
        let mut any_of = Vec::new();
        let mut terms = 0;
        for part in split(text, '|') {
            let mut all_of = Vec::new();
            for term in split(part, ',') {
                terms += 1;
                if terms > SELECTOR_TERMS_MAX {
                    return refuse(format_args!(
                        "more than {SELECTOR_TERMS_MAX} terms; use a label"
                    ));
                }
                all_of.push(parse_term(term.trim(), text)?);
            }
            any_of.push(all_of);
        }
        Ok(Self { any_of })
    }
}

/// Splits at a separator, but not inside the brackets of a regular expression.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut from, mut depth, mut escaped, mut in_regex) = (0, 0u32, false, false);
    for (at, character) in text.char_indices() {
        let at_start = text[..at].ends_with([',', '|']) || text[..at].trim().is_empty();
        if at_start && depth == 0 {
            let rest = text[at..].trim_start();
            in_regex = rest.starts_with("re:") || rest.starts_with("re!:");
        }
        match character {
            _ if escaped => escaped = false,
            '\\' if in_regex => escaped = true,
            '(' | '[' | '{' if in_regex => depth += 1,
            ')' | ']' | '}' if in_regex => depth = depth.saturating_sub(1),
            _ if character == separator && depth == 0 => {
                parts.push(&text[from..at]);
                from = at + character.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn parse_term(term: &str, whole: &str) -> Result<Term, SelectorError> {
    if term.is_empty() {
        return match whole.trim().is_empty() {
            true => refuse("it is empty; write `all` for all agents"),
            false => {
                refuse(format_args!("`{whole}` has an empty term; remove the extra `,` or `|`"))
            }
        };
    }
    if term == "all" || term == "*" {
        return Ok(Term { negated: false, test: Test::All });
    }
    for (prefix, negated) in [("re:", false), ("re!:", true)] {
        if let Some(pattern) = term.strip_prefix(prefix) {
            let compiled = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
            return match compiled {
                Ok(compiled) => Ok(Term { negated, test: Test::Regex(compiled) }),
                Err(error) => refuse(format_args!("`{pattern}` is no regular expression: {error}")),
            };
        }
    }
    let Some((key, value)) = term.split_once('=') else { return parse_word(term) };
    let (key, negated) = match key.strip_suffix('!') {
        Some(key) => (key.trim(), true),
        None => (key.trim(), false),
    };
    let value = value.trim();
    let test = parse_pair(key, value, term)?;
    Ok(Term { negated, test })
}

fn parse_pair(key: &str, value: &str, term: &str) -> Result<Test, SelectorError> {
    if value.is_empty() {
        return refuse(format_args!("`{term}` has no value after `=`"));
    }
    if value.contains('=') {
        return refuse(format_args!(
            "`{term}` has more than one `=`; separate terms by `,` or `|`"
        ));
    }
    let pattern = Pattern(value.to_owned());
    Ok(match key {
        "" => return refuse(format_args!("`{term}` has no key before `=`")),
        "id" => Test::Id(pattern),
        "ip" => Test::Ip(pattern),
        "host" => Test::Host(pattern),
        "region" => Test::Region(pattern),
        "zone" => Test::Zone(pattern),
        "cloud" => match value.parse() {
            Ok(cloud_id) => Test::Cloud(cloud_id),
            Err(_) => return refuse(format_args!("cloud area `{value}` is not a number")),
        },
        "state" => Test::State(match value {
            "online" => AgentState::Online,
            "offline" => AgentState::Offline,
            "lost" => AgentState::Lost,
            "revoked" => AgentState::Revoked,
            _ => {
                return refuse(format_args!(
                    "state `{value}` does not exist; there are online, offline, lost, revoked"
                ));
            }
        }),
        _ => {
            let name = key.strip_prefix("label.").unwrap_or(key);
            if !is_label_name(name) {
                return refuse(format_args!(
                    "`{name}` is neither a key (id, ip, host, region, zone, cloud, state) nor a \
                     label's name (letters, digits and ._-/)"
                ));
            }
            Test::Label(name.to_owned(), pattern)
        }
    })
}

fn parse_word(term: &str) -> Result<Term, SelectorError> {
    if let Some((cloud, ip)) = term.split_once(':')
        && let Ok(cloud_id) = cloud.parse()
        && ip.parse::<std::net::IpAddr>().is_ok()
        && term.parse::<std::net::IpAddr>().is_err()
    {
        return Ok(Term { negated: false, test: Test::CloudIp(cloud_id, ip.to_owned()) });
    }
    let allowed = |c: char| c.is_alphanumeric() || ".-_:*".contains(c);
    if !term.chars().all(allowed) {
        return refuse(format_args!(
            "`{term}` is not understood; write an agent id, an address, a host name, key=value, \
             or re:EXPRESSION"
        ));
    }
    Ok(Term { negated: false, test: Test::Word(Pattern(term.to_owned())) })
}

/// Names that labels may have.
pub fn is_label_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    !name.is_empty() && name.len() <= 64 && name.chars().all(allowed)
}

impl Selector {
    /// Every agent.
    pub fn all() -> Self {
        Self { any_of: vec![vec![Term { negated: false, test: Test::All }]] }
    }

    /// Whether an agent is meant. Revoked agents are meant only where the selector names their
    /// state, so that `all` never addresses a host that was shut out.
    pub fn matches(&self, agent: &impl Selectable) -> bool {
        let revoked = agent.state() == AgentState::Revoked;
        self.any_of.iter().any(|all_of| {
            let names_state =
                || all_of.iter().any(|term| matches!(term.test, Test::State(_)) && !term.negated);
            all_of.iter().all(|term| term.matches(agent)) && (!revoked || names_state())
        })
    }
}

impl Term {
    fn matches(&self, agent: &impl Selectable) -> bool {
        let any_ip = |pattern: &Pattern| agent.ips().iter().any(|ip| pattern.matches(ip));
        let holds = match &self.test {
            Test::All => true,
            Test::Id(pattern) => pattern.matches(agent.id()),
            Test::Ip(pattern) => any_ip(pattern),
            Test::Host(pattern) => pattern.matches(agent.hostname()),
            Test::Label(name, pattern) => {
                agent.label(name).is_some_and(|value| pattern.matches(value))
            }
            Test::Region(pattern) => pattern.matches(agent.region()),
            Test::Zone(pattern) => pattern.matches(agent.zone()),
            Test::Cloud(cloud_id) => agent.cloud_id() == *cloud_id,
            Test::State(state) => agent.state() == *state,
            Test::Regex(regex) => regex.is_match(agent.hostname()),
            Test::Word(pattern) => {
                pattern.matches(agent.id()) || pattern.matches(agent.hostname()) || any_ip(pattern)
            }
            Test::CloudIp(cloud_id, ip) => {
                agent.cloud_id() == *cloud_id && agent.ips().iter().any(|one| one == ip)
            }
        };
        holds != self.negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Host {
        id: &'static str,
        name: &'static str,
        ips: Vec<String>,
        labels: &'static [(&'static str, &'static str)],
        place: (&'static str, &'static str, i32),
        state: AgentState,
    }

    impl Selectable for Host {
        fn id(&self) -> &str {
            self.id
        }
        fn hostname(&self) -> &str {
            self.name
        }
        fn ips(&self) -> &[String] {
            &self.ips
        }
        fn label(&self, name: &str) -> Option<&str> {
            self.labels.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
        }
        fn region(&self) -> &str {
            self.place.0
        }
        fn zone(&self) -> &str {
            self.place.1
        }
        fn cloud_id(&self) -> i32 {
            self.place.2
        }
        fn state(&self) -> AgentState {
            self.state
        }
    }

    /// a: web in east; b: web and canary in west, lost; c: db in another cloud; d: revoked.
    fn fleet() -> Vec<Host> {
        let host = |id, name, ip: &str, labels, place, state| Host {
            id,
            name,
            ips: vec![ip.to_owned(), "fe80::1".to_owned()],
            labels,
            place,
            state,
        };
        use AgentState::{Lost, Online, Revoked};
        vec![
            host("a", "web-1.example", "10.0.0.1", &[("role", "web")], ("east", "e1", 0), Online),
            host(
                "b",
                "web-2.example",
                "10.0.0.2",
                &[("role", "web"), ("canary", "yes")],
                ("west", "w1", 0),
                Lost,
            ),
            host("c", "db-1.example", "10.0.0.1", &[("role", "db")], ("west", "w2", 7), Online),
            host("d", "web-9.example", "10.0.0.9", &[("role", "web")], ("east", "e1", 0), Revoked),
        ]
    }

    #[test]
    fn each_selector_means_what_the_table_says() {
        let table = [
            ("all", "abc"),
            ("*", "abc"),
            ("a", "a"),
            ("web-1.example", "a"),
            ("10.0.0.1", "ac"),
            ("7:10.0.0.1", "c"),
            ("0:10.0.0.1", "a"),
            ("fe80::1", "abc"),
            ("id=b", "b"),
            ("id!=b", "ac"),
            ("ip=10.0.0.*", "abc"),
            ("host=web-*", "ab"),
            ("host=*-1.example", "ac"),
            ("host=w*1*e", "a"),
            ("role=web", "ab"),
            ("label.role=web", "ab"),
            ("label.role != web", "c"),
            ("canary!=yes", "ac"),
            ("region=west", "bc"),
            ("zone=w1|zone=e1", "ab"),
            ("cloud=7", "c"),
            ("state=online", "ac"),
            ("state=lost,role=web", "b"),
            ("state!=online", "b"),
            ("state=revoked", "d"),
            ("d", ""),
            ("re:^web-[0-9]", "ab"),
            ("re!:^web", "c"),
            ("re:^(web|db)-1,region=east", "a"),
            ("re:^web-[0-9]{1,2}|c", "abc"),
            (" role=web , region=east | id=c ", "ac"),
            ("nobody", ""),
        ];
        for (text, wanted) in table {
            let selector: Selector = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            let fleet = fleet();
            let found: String =
                fleet.iter().filter(|host| selector.matches(*host)).map(|host| host.id).collect();
            assert_eq!(found, wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_remedy() {
        let table = [
            ("", "write `all`"),
            ("a,,b", "remove the extra"),
            ("role=web|", "remove the extra"),
            ("role=", "no value"),
            ("=web", "no key"),
            ("role==web", "more than one `=`"),
            ("cloud=x", "not a number"),
            ("state=up", "online, offline, lost"),
            ("ro le=web", "neither a key"),
            ("re:(", "no regular expression"),
            ("a b", "not understood"),
            ("re:(a{1000}){1000}", "no regular expression"),
        ];
        for (text, hint) in table {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!("a,".repeat(5_000).parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            if let Ok(selector) = text.parse::<Selector>() {
                fleet().iter().for_each(|host| { selector.matches(host); });
            }
        }
    }
}
