# Takes Envoy to the services of this machine over Unix sockets: `sed -f sockets.sed envoy.yaml`.
#
# Each call asks auth and routing; over a socket that costs both sides less than over TCP
# (docs/performance.md). `infermesh up` does so where there is no TLS inside the mesh. The nodes and whoever
# calls stay with TCP, as do the services' own listeners, for all others that call them.
s|type: STRICT_DNS$|type: STATIC|
s|socket_address: {address: "${\([A-Z]*\)_HOST}", port_value: ${\1_PORT}}|pipe: {path: "${\1_SOCKET}"}|
s|pipe: {path: "${\(FRONT\)_SOCKET}"}|socket_address: {address: "${\1_HOST}", port_value: ${\1_PORT}}|
s|pipe: {path: "${\(INTERNAL\)_SOCKET}"}|socket_address: {address: "${\1_HOST}", port_value: ${\1_PORT}}|
