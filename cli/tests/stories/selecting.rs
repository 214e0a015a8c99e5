//! Operators say which hosts they mean by id, address, label, region, zone, cloud area or a regular
//! expression, and a selector that means nobody is not an invitation to mean everybody.

use skein_cli::local::AgentOptions;

use super::world::World;

fn options(region: &str, zone: &str, cloud_id: i32, role: &str) -> AgentOptions {
    AgentOptions {
        region: region.into(),
        zone: zone.into(),
        cloud_id,
        labels: [("role".to_owned(), role.to_owned())].into(),
        ..AgentOptions::default()
    }
}

#[test]
fn hosts_are_selected_by_every_property() {
    let world = World::new();
    let web = world.agent("web", options("eu", "eu-1", 0, "web"));
    let db = world.agent("db", options("eu", "eu-2", 3, "db"));
    let (web_id, db_id) = (web.id(), db.id());
    let hostname = world.view(web_id).unwrap().hostname;
    let both = format!("{web_id}|{db_id}");
    let by_expression = format!("re:^{hostname}$,role=db");
    for (selector, expected) in [
        ("all", vec![web_id, db_id]),
        (web_id, vec![web_id]),
        ("role=web", vec![web_id]),
        ("label.role=db", vec![db_id]),
        ("region=eu", vec![web_id, db_id]),
        ("zone=eu-2", vec![db_id]),
        ("cloud=3", vec![db_id]),
        ("region=eu,role!=db", vec![web_id]),
        ("region=us", vec![]),
        (both.as_str(), vec![web_id, db_id]),
        (by_expression.as_str(), vec![db_id]),
        ("state=online", vec![web_id, db_id]),
    ] {
        let mut expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        expected.sort();
        let found = world.skein_ends(0, &["hosts", "--quiet", selector]);
        let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
        found.sort();
        assert_eq!(found, expected, "{selector}");
    }
    world.skein_ends(5, &["hosts", "region="]);
    world.skein_ends(1, &["hosts", "--expect-online", "3"]);
}

#[test]
fn an_empty_selector_and_one_that_means_nobody_do_nothing_anywhere() {
    let world = World::new();
    let _agent = world.agent("one", AgentOptions::default());
    // What `$HOSTS` leaves of an unset variable.
    world.skein_ends(2, &["hosts", ""]);
    world.skein_ends(2, &["lanes", "--on", " "]);
    for nobody in ["", "nobody"] {
        world.skein_ends(5, &["run", "--on", nobody, "--", "touch", "somewhere"]);
    }
    world.skein_ends(1, &["agent", "label", "nobody", "a=b"]);
    world.skein_ends(1, &["agent", "ping", "nobody"]);
    let file = world.dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    world.skein_ends(5, &["push", file.to_str().unwrap(), "--to", "nobody:/tmp"]);
    let cache = world.server.dir().join("control/cache");
    assert_eq!(std::fs::read_dir(cache).unwrap().count(), 0, "nothing was sent for nobody");
}

#[test]
fn agents_that_share_a_host_name_are_told_apart() {
    let world = World::new();
    let one = world.agent("one", AgentOptions::default());
    let two = world.agent("two", AgentOptions::default());
    let out = world.skein_ends(0, &["run", "--on", "all", "--", "echo", "hello"]);
    assert!(out.contains(one.id()) && out.contains(two.id()), "{out}");
}
