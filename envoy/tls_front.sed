# Makes the front door speak TLS: `sed -f tls_front.sed envoy.yaml`. Nothing but TLS is taken there then.
#
# The certificate comes from sds/front.yaml, and again whenever its file is replaced.
s|^\( *\)- # TLS: front$|\1- transport_socket:\
\1    name: envoy.transport_sockets.tls\
\1    typed_config:\
\1      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\
\1      common_tls_context:\
\1        alpn_protocols: [h2, http/1.1]\
\1        tls_params: {tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}\
\1        tls_certificate_sds_secret_configs: [{name: front, sds_config: {path_config_source: {path: "${SDS_DIR}/front.yaml"}, resource_api_version: V3}}]\
\1  transport_socket_connect_timeout: 10s|
