//! Who may have an answer, by what the settings promise; written without a look at how the cache decides.

use crate::asked::{Asked, Identity};
use crate::serve::{cookie_token, cookies, decode};
use crate::settings::{App, Cookies, Query, Settings, Sharing, TenantSource, tenant_segment};

/// Whether the answer to `made_for` may be given to `asks`; if not, why.
pub(crate) fn may_share(app: &App, made_for: &Asked, asks: &Asked) -> Result<(), &'static str> {
    if made_for.app != asks.app {
        return Err("another application");
    }
    if made_for.path != asks.path {
        return Err("another path");
    }
    if made_for.veto.is_some() {
        return Err("its handler said that it is for nobody else");
    }
    let settings = app.settings_for(asks.path).ok_or("there is no cache")?;
    let (a, b) = (
        Side::of(app, &settings, made_for)?,
        Side::of(app, &settings, asks)?,
    );
    for (same, what) in [
        (a.host == b.host, "another host"),
        (a.is_witnessed == b.is_witnessed, "a witness for one alone"),
        (a.tenant == b.tenant, "another tenant"),
        (a.principal == b.principal, "another principal"),
        (a.query == b.query, "another query"),
        (a.parts == b.parts, "another part of the key"),
    ] {
        if !same {
            return Err(what);
        }
    }
    Ok(())
}

/// What tells one request's answers from another's.
struct Side {
    host: String,
    is_witnessed: bool,
    tenant: Option<String>,
    principal: Option<&'static str>,
    query: Vec<(String, String)>,
    parts: Vec<Vec<String>>,
}

impl Side {
    /// An error if its answers are nobody else's.
    fn of(app: &App, settings: &Settings, asked: &Asked) -> Result<Self, &'static str> {
        let seen = asked
            .identity()
            .filter(|_| app.knows_identities(asked.path));
        let user = seen.and_then(|identity| identity.user);

        let by_claims = user.is_some() && (app.has_principal || settings.authenticated_by);
        let by_tenant = seen.is_some() && app.tenant == Some(TenantSource::Extension);
        let is_witnessed = by_claims || by_tenant;
        if by_claims || has_credentials(settings, asked) {
            if settings.sharing.is_none() {
                return Err("nobody said who shares answers to credentials");
            }
            if !is_witnessed {
                return Err("credentials for which nobody vouched");
            }
        }
        let tenant = match (settings.sharing, app.tenant) {
            (Some(Sharing::Everyone), _) | (_, None) => None,
            (_, Some(source)) => Some(
                tenant_of(source, asked, seen)
                    .filter(|t| is_name(t))
                    .ok_or("no tenant")?,
            ),
        };
        let principal = match settings.sharing {
            Some(Sharing::Principal) => {
                Some(user.filter(|user| is_name(user)).ok_or("no principal")?)
            }
            _ => None,
        };
        Ok(Self {
            host: host(asked).ok_or("a host that is not clear")?,
            is_witnessed,
            tenant,
            principal,
            query: query(settings, asked),
            parts: parts(settings, asked),
        })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn has_credentials(settings: &Settings, asked: &Asked) -> bool {
    let has = |name| !asked.values(name).is_empty();
    let known = [
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "x-auth-token",
    ];
    let lines = asked.values("cookie");
    let sent = cookies(lines.iter().map(|line| line.as_bytes()));
    let by_cookie = match settings.cookies {
        None => !lines.is_empty(),
        Some(Cookies::Ignored) => sent
            .iter()
            .any(|(name, _)| name != "theme" && !name.starts_with("_ga")),
        Some(Cookies::Session) => sent.iter().any(|(name, _)| name == "sid"),
    };
    known.into_iter().any(has) || (settings.credential_header && has("x-user-key")) || by_cookie
}

fn tenant_of(source: TenantSource, asked: &Asked, seen: Option<Identity>) -> Option<String> {
    let from_header = || match asked.values("x-tenant")[..] {
        [one] => Some(one.to_owned()),
        _ => None,
    };
    match source {
        TenantSource::Extension => seen.map(|identity| identity.tenant.to_owned()),
        TenantSource::Header | TenantSource::FromFn => from_header(),
        TenantSource::HostLabel => {
            let host = host(asked)?;
            let (label, _) = host.split_once('.')?;
            (label != "127").then(|| label.to_owned())
        }
        TenantSource::PathParam => tenant_segment(asked.path).map(decode),
    }
}

/// Handlers may look at either of the two places.
fn host(asked: &Asked) -> Option<String> {
    let by_uri = asked.scheme_and_authority.strip_prefix("http://");
    let named: Vec<String> = by_uri
        .into_iter()
        .chain(asked.values("host"))
        .map(str::to_ascii_lowercase)
        .collect();
    let one = named.first().cloned().unwrap_or_default();
    let is_clear =
        asked.values("host").len() < 2 && named.iter().all(|n| *n == one) && !one.contains('@');
    is_clear.then_some(one)
}

/// As handlers decode it.
fn query(settings: &Settings, asked: &Asked) -> Vec<(String, String)> {
    let text = asked.query.unwrap_or_default();
    if settings.query == Some(Query::Untouched) {
        return vec![(text.to_owned(), String::new())];
    }
    let mut members: Vec<_> = text
        .split('&')
        .filter(|member| !member.is_empty())
        .map(|member| member.split_once('=').unwrap_or((member, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .filter(|(name, _)| match settings.query {
            Some(Query::Ignored) => !name.starts_with("utm_"),
            Some(Query::Only) => name == "page",
            _ => true,
        })
        .collect();
    members.sort_by(|a, b| a.0.cmp(&b.0)); // stable: the order within a name counts
    members
}

fn parts(settings: &Settings, asked: &Asked) -> Vec<Vec<String>> {
    let header = |name| asked.values(name).into_iter().map(str::to_owned).collect();
    let mut parts = Vec::new();
    if settings.key_header {
        parts.push(header("x-variant"));
    }
    if settings.key_with {
        parts.push(header("x-flag"));
    }
    if settings.key_cookie {
        parts.push(cookie_token(
            asked.values("cookie").iter().map(|l| l.as_bytes()),
            "theme",
        ));
    }
    parts
}
