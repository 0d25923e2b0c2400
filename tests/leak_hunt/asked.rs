//! A random request; its number says everything about it.

use axum::body::Body;
use http::Request;

use crate::serve::identity_of;
use test_support::random::Random;

/// Whom the authentication layer knows, by number: tenants with separators, in Unicode, without a name, and with
/// one that Postgres cannot hold.
pub(crate) const TENANTS: [&str; 8] = ["acme", "Acme", "a/b", "a\u{1f}b", "ä", "", "a\0b", "acme "];
pub(crate) const USERS: [&str; 5] = ["ann", "bob", "", "b\0b", "ann:bob"];

/// The user and the tenant of a token, a session or a certificate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Identity {
    /// None: a service that acts for a tenant.
    pub(crate) user: Option<&'static str>,
    pub(crate) tenant: &'static str,
}

impl Identity {
    /// `2.1` is user 2 of tenant 1, `s.1` a service.
    pub(crate) fn of(token: &str) -> Option<Self> {
        let (user, tenant) = token.split_once('.')?;
        Some(Self {
            user: match user {
                "s" => None,
                user => Some(USERS.get(user.parse::<usize>().ok()?)?),
            },
            tenant: TENANTS.get(tenant.parse::<usize>().ok()?)?,
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    pub(crate) app: u64,
    pub(crate) head_only: bool,
    pub(crate) scheme_and_authority: &'static str,
    pub(crate) path: &'static str,
    pub(crate) query: Option<&'static str>,
    pub(crate) fields: Vec<(&'static str, String)>,
    /// The handler's answer is not for others.
    pub(crate) veto: Option<(&'static str, &'static str)>,
}

// what is usual comes first
const PATHS: [&str; 4] = ["/a/x", "/n1/x", "/n2/x", "/t/acme/x"];
const ODD_PATHS: [&str; 14] = [
    "/t/%61cme/x",
    "/t/Acme/x",
    "/t/a%2Fb/x",
    "/t//x",
    "/",
    "//",
    "/a//x",
    "/a%2Fx",
    "/a/./x",
    "/a/../n1/x",
    "/a/x/",
    "/A/x",
    "/%00",
    "/n1/x/",
];
const QUERIES: [Option<&str>; 12] = [
    Some(""),
    Some("page=1"),
    Some("page=2"),
    Some("%70age=2"),
    Some("page=1&page=2"),
    Some("page=2&page=1"),
    Some("a=1&b=2"),
    Some("b=2&a=1"),
    Some("utm_x=1"),
    Some("page=1&utm_y=2"),
    Some("&"),
    Some("page"),
];
const HOSTS: [&str; 7] = [
    "acme.example",
    "ACME.example",
    "bolt.example",
    "acme.example:80",
    "127.0.0.1",
    "",
    "x@acme.example",
];
const VARIANTS: [&str; 3] = ["dark", "light", ""];
const COOKIES: [&str; 9] = [
    "theme=dark",
    "theme=light",
    "theme=dark; _ga=1",
    "lang=de",
    "%74heme=dark",
    "theme=dark; theme=light",
    ";",
    "dark",
    "_ga_2=x",
];

impl Asked {
    pub(crate) fn random(seed: u64, number: u64, apps: u64) -> Self {
        let mut random = Random::new(seed, number);
        let mut asked = Self {
            number,
            app: random.below(apps),
            head_only: random.one_in(20),
            scheme_and_authority: "",
            path: random.usually(PATHS[number as usize % PATHS.len()], &ODD_PATHS),
            query: random.usually(None, &QUERIES),
            fields: vec![("x-number", number.to_string())],
            veto: None,
        };
        if random.one_in(30) {
            asked.veto = Some(random.of(&[
                ("cache-control", "private"),
                ("cache-control", "no-store"),
                ("set-cookie", "sid=0.0"),
                ("vary", "*"),
            ]));
        }
        asked.address(&mut random);
        asked.identify(&mut random);
        asked.vary(&mut random);
        asked
    }

    fn address(&mut self, random: &mut Random) {
        if random.one_in(12) {
            self.scheme_and_authority = random.of(&[
                "http://acme.example",
                "http://Acme.example",
                "http://bolt.example",
                "http://u:P@acme.example",
            ]);
        }
        if self.scheme_and_authority.is_empty() || random.one_in(2) {
            self.add("host", random.usually(HOSTS[0], &HOSTS));
        }
        if random.one_in(40) {
            self.add("host", random.usually(HOSTS[0], &HOSTS));
        }
    }

    fn identify(&mut self, random: &mut Random) {
        let user = random.of(&["0", "0", "0", "1", "1", "2", "3", "4", "s", "junk"]);
        let tenant = random.of(&[0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7]);
        let token = format!("{user}.{tenant}");
        match random.below(12) {
            0..=2 => self.fields.push(("authorization", token)),
            3 => self.fields.push(("x-user-key", token)),
            4 => self.fields.push(("cookie", format!("sid={token}"))),
            5 => self
                .fields
                .push(("cookie", format!("theme=dark; %73id={token}"))),
            6 => self.fields.push(("x-client-certificate", token)),
            7 => self.add(
                random.of(&[
                    "authorization",
                    "x-api-key",
                    "x-auth-token",
                    "proxy-authorization",
                    "cookie",
                ]),
                "junk",
            ),
            _ => {}
        }
        // forged or not: the cache cannot know
        if !random.one_in(4) {
            self.add(
                "x-tenant",
                random.of(&["acme", "acme", "acme", "bolt", "Acme", "a b", ""]),
            );
        }
        if random.one_in(60) {
            self.add("x-tenant", "bolt");
        }
    }

    fn vary(&mut self, random: &mut Random) {
        for name in ["x-variant", "x-flag"] {
            if random.one_in(6) {
                self.add(name, random.of(&VARIANTS));
            }
        }
        if random.one_in(8) {
            self.add("cookie", random.of(&COOKIES));
        }
    }

    fn add(&mut self, name: &'static str, value: &str) {
        self.fields.push((name, value.to_owned()));
    }

    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        identity_of(self.fields.iter().map(|(n, v)| (*n, v.as_bytes())))
    }

    pub(crate) fn request(&self) -> Request<Body> {
        let mut uri = format!("{}{}", self.scheme_and_authority, self.path);
        if let Some(query) = self.query {
            uri = format!("{uri}?{query}");
        }
        let mut request = Request::builder()
            .method(if self.head_only { "HEAD" } else { "GET" })
            .uri(uri);
        for (name, value) in &self.fields {
            request = request.header(*name, value);
        }
        request.body(Body::empty()).unwrap()
    }
}
