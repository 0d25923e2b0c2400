//! What clients ask for, and what changes meanwhile.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use test_support::http::{Answer, send};
use test_support::random::Random;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::service::{ITEMS, Instance, NOTE};

const CLIENTS: u64 = 64;

pub(crate) struct Load {
    pub(crate) instances: [Instance; 2],
    sql: Client,
}

impl Load {
    pub(crate) const fn new(instances: [Instance; 2], sql: Client) -> Self {
        Self { instances, sql }
    }

    /// Each begins with a number of its own that nobody has asked for before.
    pub(crate) fn clients(self: &Arc<Self>, hour: u64, requests: u64) -> Vec<JoinHandle<()>> {
        let client = |number| {
            let load = Arc::clone(self);
            let random = Random::new(hour, number);
            tokio::spawn(async move {
                let new = (hour * CLIENTS + number) * requests + ITEMS;
                let mut client = Visitor { load, random, new };
                if number == 0 {
                    client.begin(hour).await;
                }
                for _ in 0..requests / CLIENTS {
                    client.act().await;
                }
            })
        };
        (0..CLIENTS).map(client).collect()
    }
}

struct Visitor {
    load: Arc<Load>,
    random: Random,
    /// A number that was not used before.
    new: u64,
}

impl Visitor {
    async fn act(&mut self) {
        if self.random.percent(75) {
            let hot = self.random.below(10);
            return self.get(&format!("/items/{hot}")).await;
        }
        let id = self.id();
        match self.random.below(100) {
            0..=64 => self.get(&format!("/items/{id}")).await,
            65..=72 => self.get(&format!("/flags/{}", id % 20)).await,
            73..=82 => self.get(&format!("/news/{}", id % 100)).await,
            83..=88 => self.get(&format!("/notes/{}", id % 200)).await,
            89..=91 => self.get(&format!("/carts/{}", id % 20)).await,
            92..=93 => self.leave_early(id).await,
            94 => self.post(&format!("/notes/{id}")).await,
            95..=97 => self.write(id).await,
            _ => self.invalidate(id).await,
        }
    }

    /// Mostly one of those that everybody asks for; of the others each is asked for once.
    fn id(&mut self) -> u64 {
        if self.random.percent(85) {
            let most = 1 + self.random.below(ITEMS);
            return self.random.below(most);
        }
        self.new += 1;
        self.new
    }

    /// Five that stay, and now and then one that is not seen again.
    fn tenant(&mut self, id: u64) -> String {
        if self.random.percent(2) {
            return format!("visitor-{}", self.new);
        }
        format!("t{}", id % 5)
    }

    async fn send(&mut self, method: &str, uri: &str) -> Answer {
        let digits = uri.bytes().rev().take_while(u8::is_ascii_digit).count();
        let id = uri[uri.len() - digits..].parse().unwrap();
        let tenant = self.tenant(id);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("x-tenant", tenant)
            .header("x-flag", self.random.below(10_000).to_string())
            .body(Body::empty());
        let app = self.random.pick(&self.load.instances).app.clone();
        send(&app, request.unwrap()).await
    }

    async fn get(&mut self, uri: &str) {
        assert_eq!(self.send("GET", uri).await.status, 200);
    }

    async fn post(&mut self, uri: &str) {
        assert_eq!(self.send("POST", uri).await.status, 204);
    }

    async fn leave_early(&mut self, id: u64) {
        let uri = format!("/slow/{}", id % 50);
        let patience = Duration::from_millis(self.random.below(25));
        let _ = timeout(patience, self.send("GET", &uri)).await;
    }

    /// To a watched table, by a program that knows nothing of the cache; now and then to a hundred rows.
    async fn write(&mut self, id: u64) {
        let many = i32::from(self.random.one_in(50)) * 100;
        let id = (id % ITEMS) as i32;
        let write = "UPDATE item SET price = price + 1
                      WHERE id = ANY (ARRAY(SELECT generate_series($1::int, $1 + $2::int))) ";
        self.load.sql.execute(write, &[&id, &many]).await.unwrap();
    }

    async fn invalidate(&mut self, id: u64) {
        let cache = &self.load.instances[0].cache;
        if self.random.one_in(2) {
            cache.invalidate([NOTE.entity(id)]).await.unwrap();
        } else {
            let uri = format!("http://example.com/items/{id}");
            cache.purge_uri(&uri.parse().unwrap()).await.unwrap();
        }
    }

    async fn begin(&self, hour: u64) {
        let [one, other] = &self.load.instances;
        one.cache.purge_tenant("t1").await.unwrap();
        if hour % 3 == 0 {
            other.cache.clear().await.unwrap();
        }
    }
}
