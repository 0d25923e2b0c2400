//! Spellings: what one component takes for two resources, and another one for one.

use std::collections::HashSet;

use axum::Router;
use axum::extract::Request;

use crate::site::{Site, echoing, exchange, get};

const SPELLINGS: [&str; 33] = [
    "/a/b",
    "/a/b/",
    "/a//b",
    "//a/b",
    "/A/b",
    "/a%2fb",
    "/a%2Fb",
    "/a%252fb",
    "/%61/b",
    "/a/./b",
    "/a/x/../b",
    "/a/x/%2e%2e/b",
    "/a/x/%2E%2E/b",
    "/a/x/..;/b",
    "/a/b;jsessionid=1",
    "/a;x/b",
    "/a/b%00",
    "/a/b%20",
    "/a/b.",
    "/a/b%3f",
    "/a/b%23",
    "/a/b?",
    "/a/b?x=1+2",
    "/a/b?x=1%202",
    "/a/b?x=1%2b2",
    "/a/b?x=1&y=2",
    "/a/b?x=1;y=2",
    "/a/b?x=1&x=2",
    "/a/b?x=2&x=1",
    "/a/b?x=1&%78=2",
    "/a/b?%78=2&x=1",
    "/a/b?x",
    "/a/b?x=",
];

#[tokio::test]
async fn every_spelling_of_a_target_has_answers_of_its_own() {
    let site = Site::new().await;
    let address = site.serve_echo().await;
    let mut bodies = HashSet::new();
    for round in 0..2 {
        for target in SPELLINGS {
            let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            let answer = exchange(address, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{target}\n{answer}");
            assert!(
                answer.contains(&format!("GET {target} ")),
                "{target}\n{answer}"
            );
            assert_eq!(answer.contains("pgcache; hit"), round == 1, "{answer}");
            bodies.insert(answer.split("\r\n\r\n").nth(1).unwrap().to_owned());
        }
        site.settled().await;
    }
    assert_eq!(bodies.len(), SPELLINGS.len());
}

/// Parameter cloaking: what the key leaves out, and a handler reads.
#[tokio::test]
async fn a_member_that_does_not_count_hides_none_that_does() {
    /// The last page named, as parsers read that divide at `;` too and decode names.
    async fn page(request: Request) -> String {
        let query = request
            .uri()
            .query()
            .unwrap_or_default()
            .replace("%70", "p");
        let mut pages = query
            .split(['&', ';'])
            .filter_map(|m| m.strip_prefix("page="));
        pages.next_back().unwrap_or("none").to_owned()
    }
    let site = Site::new().await;
    let rules = [
        site.layer(),
        site.layer().ignore_query(["utm_*", "callback"]),
        site.layer().only_query(["page"]),
    ];
    let cloaked = [
        "page=1&utm_x=1;page=evil",
        "utm_x=1;page=evil&page=1&utm_y=;page=evil",
        "page=1&callback=x;page=evil",
        "page=1&x=1;%70age=evil",
        "page=1&%70age=evil",
        "page=1&page=evil",
        "page=1&utm_x=1&%70age=evil",
    ];
    for (n, layer) in rules.into_iter().enumerate() {
        let app = Router::new().fallback(page).layer(layer);
        for query in cloaked {
            let uri = |query: &str| format!("/{n}/{}?{query}", query.len());
            let path = uri(query);
            let path = path.split('?').next().unwrap();
            let hostile = get(&app, &format!("{path}?{query}"), &[]).await;
            assert_eq!(hostile.text(), "evil", "{query}");
            site.settled().await;
            let victim = get(&app, &format!("{path}?page=1"), &[]).await;
            assert_eq!(victim.text(), "1", "{query}");
        }
    }
}

#[tokio::test]
async fn the_setting_for_parameters_that_bust_the_cache() {
    let site = Site::new().await;
    let app = echoing(site.layer().only_query(["page"]));
    get(&app, "/?page=1", &[]).await;
    site.settled().await;
    for n in 0..1000 {
        let answer = get(&app, &format!("/?bust={n}&page=1&utm_{n}={n}"), &[]).await;
        assert!(answer.is_hit(), "{n}");
    }
}
