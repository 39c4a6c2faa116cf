// An OpenID provider for tests: the protocol is oidc-provider's; here are its clients and people.
// Reads one JSON document from its first argument: {modules, port, keys, clients, accounts}.
import { pathToFileURL } from 'node:url';

const settings = JSON.parse(process.argv[2]);
const entry = pathToFileURL(`${settings.modules}/oidc-provider/lib/index.js`);
const { Provider } = await import(entry);

const provider = new Provider(`http://127.0.0.1:${settings.port}`, {
  clients: settings.clients,
  jwks: { keys: settings.keys },
  cookies: { keys: ['only a test'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  // As the large providers do: who it is stands in the ID token.
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: {
    deviceFlow: { enabled: true },
    devInteractions: { enabled: true },
  },
  // `login` of the form is the account.
  findAccount: (_, id) => settings.accounts[id] && {
    accountId: id,
    claims: () => ({ sub: id, ...settings.accounts[id] }),
  },
});
provider.listen(settings.port, '127.0.0.1', () => console.log('ready'));
