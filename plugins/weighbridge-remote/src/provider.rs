//! The provider: finds servers and opens their models.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::sync::Semaphore;
use weighbridge_core::{
    Backend, Egress, Error, ErrorKind, ModelCard, ModelListing, ModelRef, OpenContext, Placement,
    Probe, Provider, ProviderInfo, Result, Secret, Weights,
};

use crate::address::{Address, Place};
use crate::backend::RemoteBackend;
use crate::chat::Chat;
use crate::failure::{Refusal, by_status};
use crate::http::{Call, Http};
use crate::options::{Options, Timers};
use crate::runtime;
use crate::wire::Wire as _;

const ID: &str = "openai-compatible";
const MAX_LISTING_BYTES: usize = 4 << 20;
/// Where common local servers listen: llama-server, Ollama, LM Studio, vLLM.
const USUAL_SERVERS: [&str; 4] = [
    "http://127.0.0.1:8080/v1",
    "http://127.0.0.1:11434/v1",
    "http://127.0.0.1:1234/v1",
    "http://127.0.0.1:8000/v1",
];
/// How long a usual server may take to list its models, before it counts as absent.
const USUAL_SERVER_WAIT: Duration = Duration::from_millis(500);

/// Models behind servers that speak OpenAI's Chat Completions.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenAiCompatible;

impl OpenAiCompatible {
    /// The provider. Nothing is started or asked.
    pub fn new() -> Self {
        Self
    }
}

/// A server that may be spoken to.
struct Server {
    http: Arc<Http>,
    place: Place,
    key_name: Option<String>,
}

#[async_trait]
impl Provider for OpenAiCompatible {
    fn id(&self) -> &str {
        ID
    }

    fn describe(&self) -> ProviderInfo {
        let mut info = ProviderInfo::new(
            "models behind servers that speak OpenAI's Chat Completions",
            "URL of the API with the model behind `#`: http://127.0.0.1:8080/v1#my-model",
        )
        .with_option_schema(Options::schema());
        info.needs_egress = true;
        info
    }

    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe {
        match self.ask_whether_it_answers(model, context).await {
            Ok(()) => Probe::Yes,
            Err(error) => Probe::No { reason: error.to_string() },
        }
    }

    /// Lists the server at the option `url`; without it, the servers that answer at the usual
    /// ports of this machine.
    async fn list(&self, context: &OpenContext) -> Result<Vec<ModelListing>> {
        let options = Options::read(ID, &context.options)?;
        let egress = egress(context)?;
        if let Some(url) = &options.url {
            let address = Address::parse(url)?;
            let server = connect(address, &options, egress, context).await?;
            return Ok(listings(url, &server, &options, server.models().await?));
        }
        let wait = Timers {
            connect: USUAL_SERVER_WAIT,
            first_byte: USUAL_SERVER_WAIT,
            idle: USUAL_SERVER_WAIT,
            total: USUAL_SERVER_WAIT,
        };
        let options = Options { timers: wait, api_key_env: None, ..options };
        let ask = async |url: &str| -> Result<Vec<ModelListing>> {
            let server = connect(Address::parse(url)?, &options, egress, context).await?;
            // Whoever listens there and lists no models is somebody else.
            let models = server.models().await.unwrap_or_default();
            Ok(listings(url, &server, &options, models))
        };
        let found = try_join_all(USUAL_SERVERS.map(ask)).await?.concat();
        Ok(found)
    }

    async fn open(&self, model: &ModelRef, context: &OpenContext) -> Result<Arc<dyn Backend>> {
        let options = Options::read(ID, &context.options)?;
        let address = address(model)?;
        let wanted = wanted_model(model, &options)?;
        let server = connect(address, &options, egress(context)?, context).await?;
        let id = match wanted {
            Some(id) => id,
            None => only_model(server.models().await?, server.http.address().authority())?,
        };
        Ok(Arc::new(backend(id, server, &options)))
    }
}

impl OpenAiCompatible {
    async fn ask_whether_it_answers(&self, model: &ModelRef, context: &OpenContext) -> Result<()> {
        let options = Options::read(ID, &context.options)?;
        let address = address(model)?;
        let wanted = wanted_model(model, &options)?;
        let server = connect(address, &options, egress(context)?, context).await?;
        match server.models().await {
            Ok(models) if wanted.is_none() => {
                only_model(models, server.http.address().authority()).map(drop)
            }
            // Not every server lists its models; one that is named may be there all the same.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && wanted.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Server {
    /// The names of the models that the server lists.
    async fn models(&self) -> Result<Vec<String>> {
        self.fetch_models().await.map_err(|error| self.http.redactor().clean(error))
    }

    async fn fetch_models(&self) -> Result<Vec<String>> {
        let call = Call { route: "/models", body: None, accept: "application/json" };
        let mut exchange = self.http.start(call)?;
        let head = exchange.head().await?;
        let body = exchange.body(MAX_LISTING_BYTES).await?;
        if !head.is_success() {
            return Err(match by_status(&self.http, &head, &body, self.key_name.as_deref()) {
                Refusal::Error(error) => error,
                Refusal::Filtered(code) => Error::new(ErrorKind::ServerError, code),
            });
        }
        let document: Option<Value> = serde_json::from_slice(&body).ok();
        let models = document.as_ref().and_then(|d| d["data"].as_array()).ok_or_else(|| {
            let text = String::from_utf8_lossy(&body);
            Error::new(
                ErrorKind::Transport,
                format!(
                    "{} lists no models as an OpenAI-compatible server does; check that the URL \
                     is the base of the API, which often ends in /v1",
                    self.http.address().authority()
                ),
            )
            .with("body", self.http.redactor().excerpt(text.trim(), 400))
        })?;
        Ok(models.iter().filter_map(|m| m["id"].as_str()).map(str::to_owned).collect())
    }
}

fn address(model: &ModelRef) -> Result<Address> {
    if model.revision.is_some() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a server's URL takes no `@`: neither a revision nor a user; name a key by the option \
             `api_key_env`",
        ));
    }
    Address::parse(&model.location)
}

fn wanted_model(model: &ModelRef, options: &Options) -> Result<Option<String>> {
    match (&model.variant, &options.model) {
        (Some(a), Some(b)) if a != b => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("the model is named twice, `#{a}` and option `model` = `{b}`; keep one"),
        )),
        (named, option) => Ok(named.clone().or_else(|| option.clone())),
    }
}

fn egress(context: &OpenContext) -> Result<&Egress> {
    context.egress.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::EgressDenied,
            "this run is offline, so no server may be asked; allow egress in the suite, or use a \
             model in this process",
        )
    })
}

async fn connect(
    address: Address,
    options: &Options,
    egress: &Egress,
    context: &OpenContext,
) -> Result<Server> {
    let place = {
        let (address, egress, wait) = (address.clone(), egress.clone(), options.timers.connect);
        runtime::run(async move { address.locate(&egress, wait).await }).await?
    };
    let (key_name, key) = key(&address, options, context)?;
    let http = Http::new(address, place.is_loopback, key.as_ref(), egress.clone(), options.timers)?;
    Ok(Server { http: Arc::new(http), place, key_name })
}

fn key(
    address: &Address,
    options: &Options,
    context: &OpenContext,
) -> Result<(Option<String>, Option<Secret>)> {
    let name = match options.api_key_env.as_deref() {
        Some("") => None,
        Some(name) => Some(name),
        None => (address.host() == "api.openai.com").then_some("OPENAI_API_KEY"),
    };
    let Some(name) = name else { return Ok((None, None)) };
    match context.secret(name).filter(|secret| !secret.expose().is_empty()) {
        Some(secret) => Ok((Some(name.to_owned()), Some(secret))),
        None => Err(Error::new(
            ErrorKind::Auth,
            format!(
                "no key for {}: the secret `{name}` is not set; set it, or correct the option \
                 `api_key_env`",
                address.authority()
            ),
        )),
    }
}

fn only_model(mut models: Vec<String>, place: &str) -> Result<String> {
    if models.len() == 1 {
        return Ok(models.remove(0));
    }
    let listed = match models.len() {
        0 => "none".to_owned(),
        n => {
            let shown: Vec<_> = models.iter().take(20).map(|m| format!("`{m}`")).collect();
            let more = if n > 20 { format!(" and {} more", n - 20) } else { String::new() };
            format!("{}{more}", shown.join(", "))
        }
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("name the model at {place} behind `#` in the URL; it lists {listed}"),
    ))
}

fn card(id: &str, server: &Server, options: &Options) -> ModelCard {
    let placement = if server.place.is_loopback {
        Placement::LocalServer { verified: options.is_verified }
    } else {
        Placement::Network { host: server.http.address().authority().to_owned() }
    };
    // Who holds the weights is not to be seen from here; a suite that knows says so.
    let mut card = ModelCard::new(id, ID, Weights::Unknown, placement);
    card.n_ctx = options.n_ctx;
    card
}

fn listings(
    url: &str,
    server: &Server,
    options: &Options,
    models: Vec<String>,
) -> Vec<ModelListing> {
    let listing = |id: String| {
        let card = card(&id, server, options);
        let mut model = ModelRef::new(ID, url);
        model.variant = Some(id);
        ModelListing::new(model, card)
    };
    models.into_iter().map(listing).collect()
}

fn backend(id: String, server: Server, options: &Options) -> RemoteBackend {
    let wire = Chat::new(ID, options);
    let mut capabilities = wire.capabilities();
    capabilities.n_ctx = options.n_ctx;
    capabilities.max_concurrency = Some(options.max_concurrency);
    RemoteBackend {
        card: card(&id, &server, options),
        capabilities,
        http: server.http,
        wire: Box::new(wire),
        key_name: server.key_name,
        permits: Semaphore::new(options.max_concurrency as usize),
    }
}
