"""One libtorrent session that waits for a torrent and takes part in its swarm until it is killed.

session.py MODE ROLE ADDRESS FOLDER TORRENT READY DONE

MODE is default, fast or super; ROLE is seed or leech. READY is made when the session listens, DONE
when the file is complete. Without DHT, local discovery and uTP in every mode: the hosts of a data
centre know their tracker. The fast modes connect at once and give a seed few upload slots; super
adds super-seeding (BEP 16).
"""

import os
import sys
import time

import libtorrent as lt

mode, role, address, folder, torrent, ready, done = sys.argv[1:]
settings = {
    "listen_interfaces": address + ":6881",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "alert_mask": lt.alert.category_t.status_notification,
}
if mode != "default":
    settings.update(
        {
            "connection_speed": 200,
            "torrent_connect_boost": 100,
            "min_reconnect_time": 1,
            "min_announce_interval": 1,
            "unchoke_slots_limit": 4 if role == "seed" else 8,
        }
    )
session = lt.session(settings)
open(ready, "w").close()
while not os.path.exists(torrent):
    time.sleep(0.005)
params = lt.add_torrent_params()
params.ti = lt.torrent_info(torrent)
params.save_path = folder
params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if role == "seed":
    # It was hashed a moment ago; nobody would hash it twice.
    params.flags |= lt.torrent_flags.seed_mode
    if mode == "super":
        params.flags |= lt.torrent_flags.super_seeding
handle = session.add_torrent(params)
while role == "leech":
    session.wait_for_alert(100)
    alerts = session.pop_alerts()
    if any(isinstance(alert, lt.torrent_finished_alert) for alert in alerts):
        open(done, "w").close()
        break
while True:
    time.sleep(60)
